{#- Workers and cron jobs, of the release that is live. -#}
include:
  - ckan.package

ckan-jobs:
  ckan_jobs.followed:
    - require:
      - ckan_package: ckan-package-retired
