# Which host gets which environment, by minion id: web1, web2, ...; staging-web1, ...
# Never match by a grain here: a host sets its grains itself, and would be given the secrets.
base:
  'web*':
    - ckan.production
  'staging-*':
    - ckan.staging
