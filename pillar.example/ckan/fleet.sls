#!jinja|json
{#- What the master knows of the environment as a whole, for its hosts: who keeps deploys out at the moment (the deploy lock), and
    the release that all hosts are to be on (wanted). Made by the deploys themselves; nothing here is to be edited. #}
{%- macro kept(name) %}
{%- set file = opts.cachedir ~ '/ckan/' ~ environment ~ '/' ~ name ~ '.json' %}
{{- salt['file.read'](file) if salt['file.file_exists'](file) else 'null' }}
{%- endmacro %}
{"ckan_fleet": {"lock": {{ kept('lock') }}, "wanted": {{ kept('wanted') }}}}
