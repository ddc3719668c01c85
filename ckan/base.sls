{#- The virtualenv that releases are clones of. -#}
include:
  - ckan.host

ckan-base:
  ckan_base.present:
    - require:
      - sls: ckan.host
