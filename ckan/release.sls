{#- The first release, unless one is live. -#}
{%- set settings = salt['ckan_settings.show']() %}
include:
  - ckan.base
  - ckan.web

ckan-release:
  ckan_release.live:
    - name: {{ settings.env | json }}
    - require:
      - sls: ckan.base
      - sls: ckan.web
