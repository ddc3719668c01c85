# frozen_string_literal: true

TOLD.fetch("hosts").each do |told|
  server told.fetch("address"), roles: [:web], **told.transform_keys(&:to_sym)
end
