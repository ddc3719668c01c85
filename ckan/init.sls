{#- What a host of a CKAN portal looks like. A highstate with this is the first deploy; after it, `orch.deploy`. #}
include:
  - ckan.host
  - ckan.base
  - ckan.web
  - ckan.certificate
  - ckan.release
  - ckan.package
  - ckan.jobs
