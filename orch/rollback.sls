{#- A rollback over all hosts of an environment, a stage a step.

      salt-run state.orch orch.rollback pillar='{env: production}'
      salt-run state.orch orch.rollback pillar='{env: production, to: 20261125021500Z, reason: search is broken}'

    What else the pillar may say: dry_run, force, maintenance, message, until, groups, allow_down, steal (docs/commands.md), and for a
    database that the release does not know: accept_schema, downgrade, restore (docs/database.md).

    A stage that fails on any host returns every host to the release that it served before. -#}
{%- import tpldir ~ '/stages.jinja' as stages %}
{%- set env = pillar.get('env', '') %}
{%- set database = ['downgrade'] if pillar.get('downgrade') or pillar.get('restore') else [] %}
{%- set dry_run = pillar.get('dry_run', False) %}
{%- set groups = pillar.get('groups', []) %}
{#- The first step decides; these are the names of its groups. #}
{%- set names = salt['saltutil.runner']('ckan_fleet.steps', kwarg={'env': env, 'groups': groups}) if groups else [''] %}

plan:
  ckan_fleet.planned:
    # Nothing was touched where it is refused: no other step is to be listed.
    - failhard: true
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
    - message: {{ pillar.get('message', '') | json }}
    - until: {{ pillar.get('until', '') | json }}
    - groups: {{ groups | json }}
    - allow_down: {{ pillar.get('allow_down', []) | json }}
    - given: {{ pillar | list | json }}
{%- if not dry_run %}
{{ stages.run(env, names, database + ['activate', 'verify'], once='downgrade') }}
{%- endif %}
