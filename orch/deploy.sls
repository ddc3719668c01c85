{#- A deploy over all hosts of an environment, a stage a step.

      salt-run state.orch orch.deploy pillar='{env: production}'
      salt-run state.orch orch.deploy pillar='{env: production, extensions: {ckanext-mycity: {ref: fix-42}}}'
      salt-run state.orch orch.deploy pillar='{env: production, groups: [canary, rest]}'
      salt-run state.orch orch.deploy pillar='{env: production, allow_down: [web3]}'
      salt-run state.orch orch.deploy pillar='{env: production, from: staging}'

    What else the pillar may say: dry_run, force, fresh, maintenance, message, reason, steal, until (docs/commands.md),
    and with from: release (docs/environments.md).

    A stage that fails on any host stops the ones after it, and `revert` returns every host to the release that it
    served before. A migration runs once, in the first group; what is left of the release before goes when all groups
    serve the new one. -#}
{%- import tpldir ~ '/stages.jinja' as stages %}
{%- set env = pillar.get('env', '') %}
{%- set dry_run = pillar.get('dry_run', False) %}
{%- set groups = pillar.get('groups', []) %}
{#- The first step decides; these are the names of its groups. #}
{%- set names = salt['saltutil.runner']('ckan_fleet.steps', kwarg={'env': env, 'groups': groups}) if groups else [''] %}

plan:
  ckan_fleet.planned:
    # Nothing was touched where it is refused: no other step is to be listed.
    - failhard: true
    - env: {{ env | json }}
    - extensions: {{ pillar.get('extensions', {}) | json }}
    - maintenance: {{ pillar.get('maintenance', False) | json }}
    - message: {{ pillar.get('message', '') | json }}
    - until: {{ pillar.get('until', '') | json }}
    - dry_run: {{ dry_run | json }}
    - reason: {{ pillar.get('reason', '') | json }}
    - force: {{ pillar.get('force', False) | json }}
    - steal: {{ pillar.get('steal', False) | json }}
    - groups: {{ groups | json }}
    - allow_down: {{ pillar.get('allow_down', []) | json }}
    - fresh: {{ pillar.get('fresh', False) | json }}
    - from_env: {{ pillar.get('from', '') | json }}
    - from_release: {{ pillar.get('release', '') | json }}
    - given: {{ pillar | list | json }}
{%- if not dry_run %}
{{ stages.run(env, names, ['build', 'check', 'migrate', 'activate', 'verify'], once='migrate') }}
{%- endif %}
