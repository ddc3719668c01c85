{#- Tell a chat how each deploy and rollback ended. In the configuration of the master:

      reactor:
        - 'ckan/*/*/done': [/srv/reactor/ckan.sls]
        - 'ckan/*/*/revert': [/srv/reactor/ckan.sls]

    What the event holds: docs/events.md. -#}
{%- set url = 'https://chat.example.org/hooks/ckan' %}
{%- set word = {'ok': 'Done', 'failed': 'FAILED'}[data.result] %}
tell the chat:
  runner.http.query:
    - args:
      - url: {{ url | json }}
      - method: POST
      - header_dict: {Content-Type: application/json}
      - data: {{ {'text': word ~ ': ' ~ data.kind ~ ' to ' ~ data.env ~ ' by ' ~ data.by ~ ': ' ~ data.comment} | json | json }}
