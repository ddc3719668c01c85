{#- What a host of a CKAN portal looks like. A highstate with this is the first deploy; after it, `orch.deploy`. -#}
{#- A host that builds for others serves nothing. -#}
{%- set builds_only = salt['ckan_settings.show']().build.only %}
include:
  - ckan.host
  - ckan.base
{%- if not builds_only %}
  - ckan.web
  - ckan.release
  - ckan.package
  - ckan.jobs
{%- endif %}
