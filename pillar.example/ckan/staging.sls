include:
  - ckan.common
  - ckan.secrets.staging
  - ckan.fleet:
      defaults:
        environment: staging

ckan:
  env: staging
  site_url: https://data-staging.example.org
  database:
    host: db-staging.example.org
  solr_url: http://solr-staging.example.org:8983/solr/ckan
  redis_url: redis://redis-staging.example.org:6379/0
  keep: 2
  # Staging follows a branch of its own.
  extensions:
    ckanext-mycity:
      ref: 'develop'
