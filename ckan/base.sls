{#- The virtualenv that releases are clones of. -#}
{%- set settings = salt['ckan_settings.show']() %}
include:
  - ckan.host

ckan-base:
  ckan_venv.base:
    - name: {{ settings.paths.base }}
    - version: {{ settings.base.version | json }}
    - python: {{ settings.base.python | json }}
    - packages: {{ settings.base.packages | json }}
    - require:
      - sls: ckan.host
