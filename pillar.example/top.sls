# Which host gets which environment, by minion id: prod-web1, prod-web2, staging-web1, ...
# Never match by a grain here: a host sets its grains itself, and would be given the secrets.
base:
  'prod-*':
    - ckan.production
  'staging-*':
    - ckan.staging
