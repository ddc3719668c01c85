# What all environments share. An environment's own file wins over what stands here.
# Put versions, branches, tags and commits in quotes: YAML reads 2.10 as the number 2.1.
ckan:
  keep: 5
  # On hosts without a CKAN: the version that the formula is to install.
  # base: {version: '2.12.0'}
  extensions:
    ckanext-mycity:
      url: https://git.example.org/ckanext-mycity.git
      ref: 'main'
    # ckanext-harvest:
    #   url: https://github.com/ckan/ckanext-harvest.git
    #   ref: 'v1.6.3'
  # Further origins (package index, archive, private git) and patches: docs/extensions.md.
  # The order counts: of two plugins that do the same, the first wins.
  plugins:
    - mycity
    # - harvest
    # - ckan_harvester
    - activity
  # Any option of CKAN.
  config:
    ckan.site_title: My City's Data
    ckan.locale_default: en
    ckan.auth.create_user_via_web: false
    # ckan.harvest.mq.type: redis
  # Background jobs, and what is run at set times: docs/services.md.
  workers:
    default: {}
  # services:
  #   gather: {command: harvester gather-consumer, once: true, stop_when_idle: true, stop_seconds: 600}
  #   fetch: {command: harvester fetch-consumer, processes: 2, stop_when_idle: true, order: 1}
  # cron:
  #   harvest: {schedule: '*/15 * * * *', command: harvester run, once: true}
  # Environment variables of CKAN; secret ones under secrets:environment.
  # environment:
  #   https_proxy: http://proxy.example.org:3128
  web:
    processes: 4
    threads: 4
    upload_limit_mb: 200
    # Pages that a release must answer before visitors are sent to it, beside CKAN's own and those of plugins:
    # docs/app-servers.md, "Smoke pages".
    # smoke:
    #   - /about
    #   - {path: /ckan-admin/, login: smoke-visitor}  # with its password under secrets:smoke
    # smoke_skip: [/report]
