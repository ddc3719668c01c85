#!yaml|gpg
# The secrets of staging. The first line must stay the first: without it Salt hands ciphertext on as if it were the secret.
# Each block is made on the master, and takes the place of the one that stands here:
#
#   salt-run ckan.encrypt staging database:password
#
# secrets:session and secrets:api_token need not be here: the master makes them once (docs/secrets.md).
# Secrets of two environments are never the same.
ckan:
  database:
    password: |
      -----BEGIN PGP MESSAGE-----

      replace this: salt-run ckan.encrypt staging database:password
      -----END PGP MESSAGE-----
