#!/bin/sh
# What the formula expects to find elsewhere, on the machine under test itself: PostgreSQL with an empty database, Redis,
# and a stand-in for Solr. kitchen.yml runs this as root before the highstate; a second time it changes nothing.
set -eu
export DEBIAN_FRONTEND=noninteractive

here=$(dirname "$0")
if ! command -v psql >/dev/null || ! command -v redis-server >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq postgresql redis-server procps
fi
sed -i s/scram-sha-256/trust/ /etc/postgresql/*/main/pg_hba.conf
service postgresql restart
service redis-server start

in_postgres() { (cd / && su postgres -c "$1"); }
if [ "$(in_postgres "psql -tAc \"select 1 from pg_roles where rolname = 'ckan_default'\"")" != 1 ]; then
    in_postgres "createuser ckan_default"
    in_postgres "createdb -O ckan_default -E UTF8 -T template0 -l C.UTF-8 ckan_default"
fi

install -m 0755 "$here/solr.py" /usr/local/bin/solr-stand-in
systemctl is-active --quiet solr-stand-in || systemd-run --quiet --unit=solr-stand-in /usr/local/bin/solr-stand-in
