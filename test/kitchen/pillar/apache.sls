# What is so on the machine under test alone: services of its own, no extension from an origin that does not exist.
ckan:
  base:
    version: '2.12.0'
  database:
    host: localhost
  redis_url: redis://127.0.0.1:6379/0
  solr_url: http://127.0.0.1:8983/solr/ckan
  extensions:
    ckanext-mycity:
      remove: true
  plugins: []
  web:
    server: apache
    processes: 2
