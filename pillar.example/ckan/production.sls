include:
  - ckan.common
  - ckan.secrets.production
  - ckan.fleet:
      defaults:
        environment: production

ckan:
  env: production
  site_url: https://data.example.org
  database:
    host: db.example.org
    name: ckan_default
    user: ckan_default
  solr_url: http://solr.example.org:8983/solr/ckan
  redis_url: redis://redis.example.org:6379/0
