{#- What a host of a CKAN portal looks like. A highstate with this is the first deploy; after it, `orch.deploy`. -#}
{#- Where the modules do not load, such as on an old Salt, Salt knows why, and says it twice. -#}
{%- if 'ckan_settings.validate' in salt %}
{%- set problems = salt['ckan_settings.validate'](raises=False) %}
{%- else %}
{%- set why = salt.missing_modules.get('ckan_settings') or 'type on the master: salt ' ~ grains['id'] ~ ' saltutil.sync_all' %}
{%- set problems = ["the formula's modules are not loaded: " ~ (why | string).split('; the formula')[0]] %}
{%- endif %}
{%- if problems %}
settings:
  test.configurable_test_state:
    - name: the settings of this host
    - changes: false
    - result: false
    - comment: {{ problems | join('\n') | json }}
{%- else %}
{#- A host that builds for others serves nothing. #}
{%- set builds_only = salt['ckan_settings.show']().build.only %}
include:
  - ckan.host
  - ckan.base
{%- if not builds_only %}
  - ckan.web
  - ckan.certificate
  - ckan.release
  - ckan.package
  - ckan.jobs
{%- endif %}
{%- endif %}
