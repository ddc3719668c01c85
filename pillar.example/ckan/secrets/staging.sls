# The secrets of staging: replace each placeholder, and encrypt it before the file goes into git.
#
#   A new secret:   openssl rand -hex 32
#   Encrypted:      printf %s 'THE SECRET' | gpg --homedir /etc/salt/gpgkeys --armor --batch --trust-model always \
#                     --encrypt --recipient KEY-OF-THE-MASTER
#
# Then put this as the very first line of the file (without it Salt hands the ciphertext on as if it were the secret):
#
#   #!yaml|gpg
#
# and write each value as a block:
#
#   password: |
#     -----BEGIN PGP MESSAGE-----
#     ...
#     -----END PGP MESSAGE-----
#
# A password that is all digits needs quotes. Secrets of two environments are never the same.
ckan:
  database:
    password: 'change-me-staging-database'
  secrets:
    session: 'change-me-staging-session'
    api_token: 'change-me-staging-api-token'
