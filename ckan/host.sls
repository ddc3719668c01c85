{#- Packages, the user that runs CKAN, directories. -#}
{%- set settings = salt['ckan_settings.show']() %}
{%- set paths = settings.paths %}
{#- Another host builds for this one. #}
{%- set takes = settings.build.ship and settings.build.host not in ('', grains.id) %}
{%- set serves = not settings.build.only %}

{%- if settings.manage.packages %}
ckan-packages:
  pkg.installed:
    - pkgs:
      {%- if not takes %}
      - git
      - openssh-client
      {%- endif %}
      - libmagic1
      - libpq5
      - python3-venv
      {%- if settings.build.sandbox == 'bubblewrap' %}
      - bubblewrap
      {%- endif %}
      {%- if settings.backup.when != 'never' %}
      - postgresql-client
      {%- endif %}
      {%- if settings.base.version and not takes %}
      # What uWSGI and CKAN's driver for PostgreSQL are built with.
      - build-essential
      - python3-dev
      - libpq-dev
      {%- endif %}
      {%- if serves and (settings.web.app == 'uwsgi' or settings.workers or settings.services) %}
      - supervisor
      {%- endif %}
      {%- if serves and settings.tls.acme.email %}
      - certbot
      {%- endif %}
      {%- if serves and settings.cron %}
      - cron
      {%- endif %}
      {%- if serves and settings.web.server == 'nginx' %}
      - nginx
      {%- elif serves and settings.web.server == 'apache' %}
      - apache2
      - libapache2-mod-wsgi-py3
      {%- endif %}
    - require_in:
      - file: ckan-directories
{%- if serves and settings.web.server == 'apache' %}

ckan-apache-modules:
  cmd.run:
    - name: a2enmod -q wsgi headers ssl rewrite http2
    - creates:
      - /etc/apache2/mods-enabled/wsgi.load
      - /etc/apache2/mods-enabled/headers.load
      - /etc/apache2/mods-enabled/ssl.load
      - /etc/apache2/mods-enabled/rewrite.load
      - /etc/apache2/mods-enabled/http2.load
    - require:
      - pkg: ckan-packages
    - require_in:
      - file: ckan-directories
{%- endif %}
{%- endif %}

{%- if settings.manage.user %}
ckan-group:
  group.present:
    - name: {{ settings.group | json }}
    - system: True

ckan-user:
  user.present:
    - name: {{ settings.user | json }}
    - gid: {{ settings.group | json }}
    - system: True
    - createhome: False
    - require:
      - group: ckan-group
    - require_in:
      - ckan_data: ckan-data

# Build code of extensions runs as this one, in a sandbox: it owns nothing, and reads no secret.
ckan-build-user:
  user.present:
    - name: {{ settings.build_user | json }}
    - usergroup: True
    - system: True
    - createhome: False
    - home: /nonexistent
    - shell: /usr/sbin/nologin
    - require_in:
      - file: ckan-directories
{%- endif %}

# Root's, since root works there.
ckan-directories:
  file.directory:
    - names:
      - {{ paths.releases }}
      - {{ paths.shared }}
      - {{ paths.config }}
      - {{ paths.log }}
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: True

# Root's, with the directories of CKAN's user and the published web assets in it.
ckan-data:
  ckan_data.present

{%- if settings.manage.packages and not takes and settings.installer.uv == paths.shared ~ '/tools/bin/uv' %}

ckan-uv:
  cmd.run:
    - name: /usr/bin/python3 -m venv {{ paths.shared }}/tools && {{ paths.shared }}/tools/bin/pip install --quiet uv
    - creates: {{ paths.shared }}/tools/bin/uv
    - require:
      - pkg: ckan-packages
      - file: ckan-directories
{%- endif %}
