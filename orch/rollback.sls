{#- A rollback over all hosts of an environment, a stage a step.

      salt-run state.orch orch.rollback pillar='{env: production}'
      salt-run state.orch orch.rollback pillar='{env: production, to: 20261125021500Z, reason: search is broken}'

    What else the pillar may say: dry_run, force, maintenance, groups, allow_down, steal (docs/operations.md), and for a
    database that the release does not know: accept_schema, downgrade, restore (docs/database.md).

    A stage that fails on any host returns every host to the release that it served before. -#}
{%- set env = pillar.get('env', '') %}
{%- set back_in_database = pillar.get('downgrade') or pillar.get('restore') %}
{%- set dry_run = pillar.get('dry_run', False) %}
{%- set groups = pillar.get('groups', []) %}
{#- The first step decides; these are the names of its groups. #}
{%- set names = salt['saltutil.runner']('ckan_hosts.steps', kwarg={'env': env, 'groups': groups}) if groups else [''] %}

plan:
  ckan_fleet.planned:
    - env: {{ env | json }}
    - kind: rollback
    - to: {{ pillar.get('to', '') | json }}
    - dry_run: {{ dry_run | json }}
    - reason: {{ pillar.get('reason', '') | json }}
    - force: {{ pillar.get('force', False) | json }}
    - steal: {{ pillar.get('steal', False) | json }}
    - accept_schema: {{ pillar.get('accept_schema', False) | json }}
    - downgrade: {{ pillar.get('downgrade', False) | json }}
    - restore: {{ pillar.get('restore', '') | json }}
    - maintenance: {{ pillar.get('maintenance', False) | json }}
    - groups: {{ groups | json }}
    - allow_down: {{ pillar.get('allow_down', []) | json }}
    - given: {{ pillar | list | json }}
{%- if not dry_run %}
{%- set steps = ['plan'] %}
{%- for group in names %}
{%- for stage in ['downgrade', 'activate', 'verify'] if stage != 'downgrade' or (back_in_database and group == names[0]) %}
{%- set step = (stage ~ ' ' ~ group) | trim %}

{{ step | json }}:
  ckan_fleet.staged:
    - env: {{ env | json }}
    - stage: {{ stage }}
    - group: {{ group | json }}
    - require:
      - ckan_fleet: {{ steps[-1] | json }}
{%- do steps.append(step) %}
{%- endfor %}
{%- endfor %}

index:
  ckan_fleet.staged:
    - env: {{ env | json }}
    - require:
      - ckan_fleet: {{ steps[-1] | json }}

finish:
  ckan_fleet.staged:
    - env: {{ env | json }}
    - require:
      - ckan_fleet: index

done:
  ckan_fleet.closed:
    - env: {{ env | json }}
    - require:
      - ckan_fleet: finish

way back:
  ckan_fleet.taken_back:
    - env: {{ env | json }}
    - onfail:
{%- for step in steps + ['index', 'finish'] %}
      - ckan_fleet: {{ step | json }}
{%- endfor %}
{%- endif %}
