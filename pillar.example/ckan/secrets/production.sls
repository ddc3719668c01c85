#!yaml|gpg
# The secrets of production. The first line must stay the first: without it Salt hands ciphertext on as if it were the secret.
# This command on the master prints a block, which takes the place of the last line here:
#
#   salt-run ckan.encrypt production database:password
#
# secrets:session and secrets:api_token need not be here: the master makes them once (docs/secrets.md).
# Secrets of two environments are never the same.
ckan: {}
