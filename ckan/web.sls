{#- The WSGI pointer, and the virtual host: of nginx before the app servers, or of Apache. -#}
{%- set settings = salt['ckan_settings.show']() %}
{%- set paths = settings.paths %}
include:
  - ckan.host

# Before anything that serves the host is written over.
ckan-package-kept:
  ckan_package.kept:
    - require:
      - file: ckan-directories

{%- for name in ['wsgi.py', 'apache.wsgi'] %}

ckan-{{ name }}:
  ckan_front.pointed:
    - name: {{ paths.config }}/{{ name }}
    - require:
      - ckan_package: ckan-package-kept
{%- endfor %}
{%- if settings.web.server == 'apache' and settings.tls.acme.peers %}

ckan-acme.wsgi:
  file.managed:
    - name: {{ paths.config }}/acme.wsgi
    - source: salt://ckan/files/acme.wsgi.jinja
    - template: jinja
    - mode: '0644'
    - require_in:
      - ckan_front: ckan-front
{%- endif %}
{%- if settings.web.server != 'none' %}

# Before the services: one that is down reads the file when it starts, one that runs is reloaded here.
ckan-front:
  ckan_front.installed:
    - name: {{ settings.web.server }}
    - require:
      - ckan_front: ckan-wsgi.py
      - ckan_front: ckan-apache.wsgi
{%- endif %}
{%- set services = {'nginx': ['nginx'], 'apache': ['apache2'], 'none': []}[settings.web.server]
                  + (['supervisor'] if settings.web.app == 'uwsgi' or settings.workers or settings.services else [])
                  + (['cron'] if settings.cron else []) %}
{%- if settings.manage.services and services %}

ckan-services:
  service.running:
    - names: {{ services | json }}
    - enable: True
    - require:
      - file: ckan-directories
      {%- if settings.web.server != 'none' %}
      - ckan_front: ckan-front
      {%- endif %}
{%- endif %}
