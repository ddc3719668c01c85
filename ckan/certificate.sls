{#- The certificate of ckan:tls:acme. Nothing requires it: without one the portal goes on with what it has. -#}
{%- set settings = salt['ckan_settings.show']() %}
include:
  - ckan.web
{%- if settings.tls.acme.email %}
{%- if settings.manage.services and settings.tls.acme.ca_bundle %}

# What certbot's own timer needs to know, too.
ckan-certbot-bundle:
  file.managed:
    - name: /etc/systemd/system/certbot.service.d/ckan.conf
    - makedirs: True
    - contents: |
        [Service]
        Environment=REQUESTS_CA_BUNDLE={{ settings.tls.acme.ca_bundle }}
  module.run:
    - service.systemctl_reload: []
    - onchanges:
      - file: ckan-certbot-bundle
{%- endif %}

ckan-certificate:
  ckan_front.certified:
    - require:
      - sls: ckan.web
{%- endif %}
