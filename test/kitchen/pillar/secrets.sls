# In place of pillar.example/ckan/secrets/production.sls: the key that could decrypt a secret stays with its master.
ckan:
  database:
    password: password-of-the-test
  secrets:
    session: session-secret-of-the-test
    api_token: token-secret-of-the-test
