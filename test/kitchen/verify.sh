#!/bin/sh
# Runs as root on the machine that Test Kitchen converged: is the first release live, and is a second highstate idle?
# kitchen.yml sends this text through its verifier, so it must stand on its own.
set -u

home=/usr/lib/ckan
failures=0

ok() { # ok TEXT COMMAND...
    text=$1
    shift
    if "$@" >/dev/null 2>&1; then
        echo "ok      $text"
    else
        echo "NOT SO  $text"
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
ok "its ini is there" test -s "$ini"
ok "its ini is not for everybody" mode_is 640 "$ini"
ok "the WSGI pointer is there" test -s /etc/ckan/default/wsgi.py
ok "its app server listens" test -S "$home/current/run/web.sock"
ok "supervisor runs it" supervised
ok "nginx finds its configuration valid" nginx -t -q

# Through nginx, with the site's host name; only requests from the machine itself are told the release.
name=$(sed -n 's/^ *server_name \([^ ;]*\).*/\1/p' /etc/nginx/conf.d/ckan-default.conf | head -n 1)
port=$(sed -n 's/^ *listen \([^ ;]*:\)\{0,1\}\([0-9]*\);.*/\2/p' /etc/nginx/conf.d/ckan-default.conf | head -n 1)
answers() {
    python3 - "$name" "${port:-80}" "$release" <<'PYTHON'
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

# The configuration that kitchen-salt made for its masterless minion.
idle() {
    salt-call --local --config-dir=/tmp/kitchen/etc/salt --retcode-passthrough --out=json state.highstate >/tmp/again.json &&
        python3 -c '
import json, sys
states = json.load(open("/tmp/again.json"))["local"].values()
sys.exit(not states or any(state["changes"] or state["result"] is not True for state in states))'
}
ok "a second highstate changes nothing" idle
ok "and built no other release" sh -c "[ \"\$(ls '$home/releases')\" = '$release' ]"

[ "$failures" -eq 0 ] || echo "$failures not as expected"
[ "$failures" -eq 0 ]
