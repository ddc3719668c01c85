{#- Workers and lines of cron, of the release that is live. -#}
include:
  - ckan.release

ckan-jobs:
  ckan_jobs.followed:
    - require:
      - ckan_release: ckan-release
