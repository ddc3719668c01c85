# frozen_string_literal: true

# A deploy after the description of the original: a release is a copy of the official install's virtualenv, with the
# extensions in it; `current` names it, and supervisor restarts the app server.

require "erb"
require "json"
require "stringio"

TOLD = JSON.parse(File.read(ENV.fetch("PORTAL")))

lock "~> 3.17"
set :application, "portal"
# Extensions are checked out by the tasks: there is no repository of the application.
set :scm, nil
set :log_level, :info
set :ssh_options, port: TOLD.fetch("port"), user: "root", keys: [TOLD.fetch("key")], keys_only: true, config: false,
                  user_known_hosts_file: [TOLD.fetch("known_hosts")]
set :stamp, Time.now.utc.strftime("%Y%m%d%H%M%S")

# The paths of a host.
Place = Struct.new(:home, :etc, :supervisor, :storage, :stamp) do
  def release
    "#{home}/releases/#{stamp}"
  end

  def sources
    TOLD.fetch("extensions").map { |extension| "#{release}/src/#{extension.fetch('name')}" }
  end

  def rendered(template)
    words = TOLD.fetch("words").merge("storage_path" => storage, "home" => home)
    StringIO.new(ERB.new(File.read("#{TOLD.fetch('templates')}/#{template}")).result_with_hash(words))
  end
end

place = lambda do |host|
  own = host.properties
  Place.new(own.home, own.etc, own.supervisor, own.storage, fetch(:stamp))
end
user = TOLD.fetch("web_user")

namespace :deploy do
  task :copy do
    on roles(:web) do |host|
      at = place.call(host)
      execute :cp, "-a", "#{at.home}/default", at.release
      execute "cd #{at.release} && grep -rlIZF '#{at.home}/default' bin | " \
              "xargs -0 -r sed -i 's##{at.home}/default##{at.release}#g'"
    end
  end

  task :extensions do
    on roles(:web) do |host|
      at = place.call(host)
      TOLD.fetch("extensions").zip(at.sources) do |extension, source|
        execute :git, "clone", "-q", "--depth", "1", "--branch", extension.fetch("ref"),
                "file://#{extension.fetch('url')}", source
      end
      install = ["#{at.release}/bin/pip", *TOLD.fetch("pip_install")]
      execute(*install, *at.sources.flat_map { |source| ["-r", "#{source}/requirements.txt"] })
      execute(*install, "--no-build-isolation", "--no-deps", *at.sources)
    end
  end

  task :configure do
    on roles(:web) do |host|
      at = place.call(host)
      ini = "#{at.release}/production.ini"
      upload! at.rendered("ini.erb"), ini
      execute "chown root:#{user} #{ini} && chmod 0640 #{ini}"
      %w[wsgi.py apache.wsgi].each { |name| upload! at.rendered("pointer.erb"), "#{at.etc}/#{name}" }
    end
  end

  task :migrate do
    on primary(:web) do |host|
      at = place.call(host)
      execute "cd / && runuser -u #{user} -- #{at.release}/bin/ckan -c #{at.release}/production.ini db upgrade"
    end
  end

  task :publish do
    on roles(:web) do |host|
      at = place.call(host)
      execute "ln -sfn releases/#{at.stamp} #{at.home}/next && mv -T #{at.home}/next #{at.home}/current"
    end
  end

  task :restart do
    on roles(:web) do |host|
      execute :supervisorctl, "-c", place.call(host).supervisor, "restart", "'portal:*'"
    end
  end

  task :prune do
    on roles(:web) do |host|
      execute "cd #{place.call(host).home}/releases && ls -1 | sort | head -n -#{TOLD.fetch('keep')} | xargs -r rm -rf"
    end
  end

  desc "Link the release before the current one, and restart"
  task :rollback do
    on roles(:web) do |host|
      at = place.call(host)
      current = File.basename(capture(:readlink, "#{at.home}/current"))
      older = capture(:ls, "-1", "#{at.home}/releases").split.select { |name| name < current }.max
      raise "#{host} has no release before #{current}" unless older

      execute "ln -sfn releases/#{older} #{at.home}/next && mv -T #{at.home}/next #{at.home}/current"
    end
    invoke "deploy:restart"
  end
end

desc "Deploy a new release"
task deploy: %w[deploy:copy deploy:extensions deploy:configure deploy:migrate deploy:publish deploy:restart deploy:prune]
