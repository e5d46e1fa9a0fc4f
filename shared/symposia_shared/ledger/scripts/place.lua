-- What a pool is meant to serve, kept while it is away. ARGV: pool, placement JSON ('' removes it), origin, then pools of that origin to keep.
if ARGV[2] ~= '' then redis.call('HSET', P .. 'placement', ARGV[1], ARGV[2])
elseif ARGV[1] ~= '' then redis.call('HDEL', P .. 'placement', ARGV[1]) end
local keep = {}
for k = 4, #ARGV do keep[ARGV[k]] = true end
redis.call('DEL', P .. 'placed', P .. 'replicas', P .. 'bells')
local pools = {}
local all = redis.call('HGETALL', P .. 'placement')
for k = 1, #all, 2 do
  local placement = cjson.decode(all[k + 1])
  if ARGV[3] ~= '' and placement.origin == ARGV[3] and not keep[all[k]] then
    redis.call('HDEL', P .. 'placement', all[k])
  else
    local counted = {}
    for model, place in pairs(placement.models) do
      redis.call('HSET', P .. 'placed', model, cjson.encode(place))
      local queue = place.queue or ''
      if place.bell then redis.call('HSET', P .. 'bells', queue, place.bell) end
      if not counted[queue] then
        counted[queue], pools[queue] = true, pools[queue] or {}
        table.insert(pools[queue], all[k])
      end
    end
  end
end
for queue, names in pairs(pools) do
  if #names > 1 then redis.call('HSET', P .. 'replicas', queue, cjson.encode(names)) end
end
return redis.call('HKEYS', P .. 'placed')
