{#- A rollback over all hosts of an environment, a stage a step.

      salt-run state.orch orch.rollback pillar='{env: production}'
      salt-run state.orch orch.rollback pillar='{env: production, to: 20261125021500Z, reason: search is broken}'

    A stage that fails on any host returns every host to the release that it served before. -#}
{%- set env = pillar.get('env', '') %}
{%- set dry_run = pillar.get('dry_run', False) %}

plan:
  ckan_fleet.planned:
    - kind: rollback
    - env: {{ env | json }}
    - to: {{ pillar.get('to', '') | json }}
    - reason: {{ pillar.get('reason', '') | json }}
    - force: {{ pillar.get('force', False) | json }}
    - dry_run: {{ dry_run | json }}
{%- if not dry_run %}
{%- set stages = ['activate', 'verify', 'finish'] %}
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
