{#- A deploy over all hosts of an environment, a stage a step.

      salt-run state.orch orch.deploy pillar='{env: production}'
      salt-run state.orch orch.deploy pillar='{env: production, extensions: {ckanext-mycity: {ref: fix-42}}}'
      salt-run state.orch orch.deploy pillar='{env: production, maintenance: true}'

    A stage that fails on any host stops the ones after it, and `way back` returns every host to the release that it
    served before. -#}
{%- set env = pillar.get('env', '') %}
{%- set dry_run = pillar.get('dry_run', False) %}

plan:
  ckan_fleet.planned:
    - env: {{ env | json }}
    - extensions: {{ pillar.get('extensions', {}) | json }}
    - dry_run: {{ dry_run | json }}
    - maintenance: {{ pillar.get('maintenance', False) | json }}
{%- if not dry_run %}
{%- set stages = ['build', 'check', 'migrate', 'activate', 'verify', 'finish'] %}
{%- for stage in stages %}

{{ stage }}:
  ckan_fleet.staged:
    - env: {{ env | json }}
    - require:
      - ckan_fleet: {{ 'plan' if loop.first else loop.previtem }}
{%- endfor %}

done:
  ckan_fleet.closed:
    - env: {{ env | json }}
    - require:
      - ckan_fleet: finish

way back:
  ckan_fleet.taken_back:
    - env: {{ env | json }}
    - onfail:
      - ckan_fleet: plan
{%- for stage in stages %}
      - ckan_fleet: {{ stage }}
{%- endfor %}
{%- endif %}
