"""
What a database is besides its tables and rows: encoding and collation, owners, rights, settings, limits, its comment.

PostgreSQL's dumps have the owners of tables and rights in them, but whoever restores them into a new database loses
what belongs to the database itself. So that is written down as the statements by which it is made again: the same
query, asked of the new database, tells what did not come back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen

from ckan_deploy.database import postgres
from ckan_deploy.releases.site import Site

# What to_jsonb is asked for differs between versions of PostgreSQL. %I and %L quote whatever somebody has called
# something; the search path keeps functions of others out.
_QUERY = """
set search_path = pg_catalog;
with d as (
  select d.oid as id, d.*, to_jsonb(d) as j, pg_get_userbyid(datdba) as owner, spcname
  from pg_database d join pg_tablespace t on t.oid = dattablespace where datname = current_database()
), rights as (
  select (case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end) as who, grantor, datdba,
    string_agg(lower(privilege_type), ', ' order by privilege_type) as what,
    case when is_grantable then ' with grant option' else '' end as further
  from d, aclexplode(datacl) group by grantee, grantor, datdba, is_grantable
), settings as (
  select setrole, split_part(one, '=', 1) as name, substr(one, strpos(one, '=') + 1) as value
  from d join pg_db_role_setting on setdatabase = id, unnest(setconfig) one
), said (place, begins, ends) as (
  select 1, 'alter database ', format(' owner to %I', owner) from d
  union all select 2, 'revoke all on database ', format(' from public, %I', owner) from d where datacl is not null
  union all select 3, 'grant ' || what || ' on database ', ' to ' || who || further from rights where grantor = datdba
  union all select 4, format('set role %I; grant %s on database ', pg_get_userbyid(grantor), what),
    ' to ' || who || further || '; reset role' from rights where grantor <> datdba
  union all select 5, case setrole when 0 then 'alter database '
    else format('alter role %I in database ', pg_get_userbyid(setrole)) end,
    format(' set %I to %s', name, case when name in ('local_preload_libraries', 'search_path',
      'session_preload_libraries', 'shared_preload_libraries', 'temp_tablespaces', 'unix_socket_directories')
      then coalesce((select string_agg(quote_literal(coalesce(replace(m[1], '""', '"'), m[2])), ', ' order by n)
        from regexp_matches(value, '"((?:[^"]|"")*)"|([^,[:space:]]+)', 'g') with ordinality as found (m, n)), '''''')
      else quote_literal(value) end) from settings
  union all select 6, 'alter database ', format(' connection limit %s', datconnlimit) from d where datconnlimit <> -1
  union all select 7, 'alter database ', ' is_template true' from d where datistemplate
  union all select 8, format('security label for %I on database ', provider), format(' is %L', label)
    from d join pg_shseclabel on objoid = id and classoid = 'pg_database'::regclass
), owners as (
  select format('alter %s %s owner to %I', case o.type when 'composite type' then 'type'
    when 'statistics object' then 'statistics' else o.type end, o.identity, rolname) as said
  from d join pg_shdepend s on s.dbid = d.id join pg_roles r on r.oid = s.refobjid,
    pg_identify_object(s.classid, s.objid, 0) o
  where deptype = 'o' and refclassid = 'pg_authid'::regclass and objsubid = 0
    and o.type not in ('default acl', 'user mapping', 'extension')
    and (rolname <> current_user or (s.classid = 'pg_namespace'::regclass and o.identity = 'public'))
    and not exists (select from pg_depend e where e.classid = s.classid and e.objid = s.objid
      and (e.deptype = 'e' or (e.deptype in ('a', 'i') and o.type = 'sequence')))
)
select jsonb_build_object(
  'create', (select format('encoding %L lc_collate %L lc_ctype %L', pg_encoding_to_char(encoding), datcollate, datctype)
    || case j->>'datlocprovider'
      when 'i' then format(' locale_provider icu icu_locale %L', coalesce(j->>'datlocale', j->>'daticulocale'))
        || case when j->>'daticurules' is null then '' else format(' icu_rules %L', j->>'daticurules') end
      when 'b' then format(' locale_provider builtin builtin_locale %L', j->>'datlocale')
      when 'c' then ' locale_provider libc' else '' end
    || case spcname when 'pg_default' then '' else format(' tablespace %I', spcname) end from d),
  'comment', (select shobj_description(id, 'pg_database') from d),
  'statements', (
    select coalesce(jsonb_agg(jsonb_build_array(begins, ends) order by place, begins, ends), '[]') from said),
  'extensions', (select coalesce(jsonb_object_agg(extname, pg_get_userbyid(extowner)), '{}') from pg_extension),
  'owners', (select coalesce(jsonb_agg(said order by said), '[]') from owners)
)
"""


@frozen
class Properties:
    """
    What a database is besides its tables: the options it is made with, the statements that follow, each in two parts
    with the name of the database between them, who owns what in it, by whom its extensions were made, and its comment.
    """

    create: str = ""
    statements: tuple[tuple[str, str], ...] = ()
    owners: tuple[str, ...] = ()
    extensions: Mapping[str, str] = field(factory=dict)
    comment: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Properties:
        """
        Read it from JSON.

        given
            What ``to_json`` returned.

        Raises ``KeyError``, ``ValueError``, ``TypeError`` for what is none.
        """
        statements = tuple((str(begins), str(ends)) for begins, ends in given["statements"])
        return cls(str(given["create"]), statements, tuple(map(str, given["owners"])), dict(given["extensions"]),
                   given["comment"])  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands beside a dump."""
        return attrs.asdict(self)

    def lacking(self, other: Properties, name: str) -> list[str]:
        """
        Return the statements by which another database would become as this one.

        other
            The properties of the other database.
        name
            What to call the database in them.
        """
        options = [] if self.create == other.create else [f"create database {name} {self.create}"]
        missing = [name.join(parts) for parts in self.statements if parts not in other.statements]
        return [*options, *missing, *(said for said in self.owners if said not in other.owners)]


def read(site: Site, database: str = "") -> Properties:
    """
    Ask a database of CKAN's server what it is.

    site
        The site.
    database
        Its name; by default the site's own.

    Raises ``FormulaError`` where it cannot be asked.
    """
    about = attrs.evolve(site.settings.database, name=database or site.settings.database.name)
    return Properties.of(json.loads(postgres.run(site, [*postgres.PSQL, "-c", _QUERY], about)))
