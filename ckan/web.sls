{#- The WSGI pointer, and nginx before the app servers. -#}
{%- set settings = salt['ckan_settings.show']() %}
{%- set paths = settings.paths %}
include:
  - ckan.host

{%- for name in ['wsgi.py', 'apache.wsgi'] %}

ckan-{{ name }}:
  file.managed:
    - name: {{ paths.config }}/{{ name }}
    - source: salt://ckan/files/wsgi.py.jinja
    - template: jinja
    - mode: '0644'
    - require:
      - file: ckan-directories
{%- endfor %}
{%- if settings.web.server == 'nginx' %}
{%- if settings.manage.services %}

ckan-services:
  service.running:
    - names:
      - nginx
      - supervisor
    - enable: True
{%- endif %}

ckan-nginx-site:
  file.managed:
    - name: {{ paths.nginx_site }}
    - source: salt://ckan/files/nginx-site.conf.jinja
    - template: jinja
    - mode: '0644'
    - makedirs: True

ckan-nginx-reload:
  module.run:
    - ckan_web.reload_front: []
    - onchanges:
      - file: ckan-nginx-site
    {%- if settings.manage.services %}
    - require:
      - service: ckan-services
    {%- endif %}
{%- endif %}
