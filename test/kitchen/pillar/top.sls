# In place of the example's own: what a machine under test needs besides, comes last and so wins.
base:
  web1:
    - ckan.production
    - kitchen
