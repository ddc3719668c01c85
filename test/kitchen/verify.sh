#!/bin/sh
# Runs as root on the machine that Test Kitchen converged: is the first release live, and is a second highstate idle?
# The argument is the web server, nginx or apache. kitchen.yml sends this text through its verifier, so it must stand
# on its own.
set -u

server=${1:?the web server, nginx or apache}
home=/usr/lib/ckan
failures=0

ok() { # ok TEXT COMMAND...
    text=$1
    shift
    if "$@" >/tmp/verify.log 2>&1; then
        echo "ok      $text"
    else
        echo "NOT SO  $text"
        tail -n 12 /tmp/verify.log | cut -c 1-400 | sed 's/^/        /'
        failures=$((failures + 1))
    fi
}

is_release_id() { expr "$1" : '[0-9]\{14\}Z$'; }

manifest_says() { # manifest_says KEY VALUE
    python3 -c 'import json, sys; sys.exit(json.load(open(sys.argv[1]))[sys.argv[2]] != sys.argv[3])' \
        "$home/current/release.json" "$1" "$2"
}

supervised() { # supervisor says STARTING for the first seconds
    for _ in 1 2 3 4 5; do
        supervisorctl status "ckan-default-$release" | grep -q RUNNING && return 0
        sleep 1
    done
    return 1
}

mode_is() { [ "$(stat -c %a "$2")" = "$1" ]; }

release=$(basename "$(readlink "$home/current" 2>/dev/null || echo none)")
python=$home/releases/$release/bin/python
ini=$(ls "$home/releases/$release"/*.ini 2>/dev/null | grep -v '/uwsgi.ini$' | head -n 1)

ok "current is a link" test -L "$home/current"
ok "current names a release ($release)" is_release_id "$release"
ok "the manifest has its id" manifest_says id "$release"
ok "the manifest says live" manifest_says state live
ok "the release's Python belongs to the release" \
    sh -c "[ \"\$('$python' -I -c 'import sys; print(sys.prefix)')\" = '$home/releases/$release' ]"
ok "CKAN is in it" "$python" -I -c 'import ckan'
ok "its ini is that of the environment" [ "$ini" = "$home/releases/$release/production.ini" ]
ok "its ini is not for everybody" mode_is 640 "$ini"
ok "its ini has the site's address" grep -qx 'ckan.site_url = https://data.example.org' "$ini"
ok "the WSGI pointer is there" test -s /etc/ckan/default/wsgi.py
case $server in
nginx)
    site=/etc/nginx/conf.d/ckan-default.conf
    name=$(sed -n 's/^ *server_name \([^ ;]*\).*/\1/p' "$site" | head -n 1)
    ok "its app server listens" test -S "$home/current/run/web.sock"
    ok "supervisor runs it" supervised
    ok "nginx finds its configuration valid" nginx -t -q
    ok "CKAN runs as www-data" sh -c "ps -o user= -C uwsgi | grep -q www-data"
    ;;
apache)
    site=/etc/apache2/sites-enabled/ckan-default.conf
    name=$(sed -n 's/^ *ServerName \([^ ]*\).*/\1/p' "$site" | head -n 1)
    ok "Apache finds its configuration valid" apachectl -t
    ok "CKAN runs as www-data" sh -c "ps -eo user=,args= | grep -q '^www-data *(wsgi:ckan-'"
    ;;
esac
ok "the site has the domain of the pillar ($name)" [ "$name" = data.example.org ]

# Through the front door, with the site's host name; only requests from the machine itself are told the release.
answers() {
    python3 - "$name" 80 "$release" <<'PYTHON'
import http.client
import sys

host, port, release = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
connection.request("GET", "/api/3/action/status_show", headers={"Host": host})
response = connection.getresponse()
sys.exit(response.status != 200 or response.getheader("X-CKAN-Release") != release)
PYTHON
}
ok "the front door answers 200, from this release" answers

# The configuration that kitchen-salt made for its masterless minion. The id is not in it.
on_minion() { salt-call --local --config-dir=/tmp/kitchen/etc/salt --id=web1 --retcode-passthrough "$@"; }

idle() {
    on_minion --out=json state.highstate >/tmp/again.json
    python3 -c '
import json, sys
states = json.load(open("/tmp/again.json"))["local"]
other = [state for state in states.values() if state["changes"] or state["result"] is not True]
sys.exit(json.dumps(other, indent=1) if other else not states)'
}
ok "a second highstate changes nothing" idle
ok "and built no other release" sh -c "[ \"\$(ls '$home/releases')\" = '$release' ]"

# There is nothing to go back to, and that is said.
refused() {
    ! on_minion ckan_release.rollback >/tmp/back 2>&1 && grep -q 'there is no release older than' /tmp/back
}
ok "a rollback is refused in a sentence" refused
ok "and the release serves on" answers

[ "$failures" -eq 0 ] || echo "$failures not as expected"
[ "$failures" -eq 0 ]
