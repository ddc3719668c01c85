{#- The official package's CKAN goes out of service once a release of ours is in it. -#}
include:
  - ckan.release

ckan-package-retired:
  ckan_package.retired:
    - require:
      - ckan_release: ckan-release
