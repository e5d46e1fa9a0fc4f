-- Turns whose predecessors have ended are queued. ARGV: job, round, then per turn: place, payload. Answers the places that were released.
frees()
local job, r = ARGV[1], ARGV[2]
local j = J(job)
local out = {}
redis.call('ZREM', P .. 'follow', job .. '|' .. r)
if redis.call('HEXISTS', j, 'c:' .. r) == 1 then return out end
for k = 3, #ARGV, 2 do
  local i = ARGV[k]
  local at = r .. ':' .. i
  local v = redis.call('HMGET', j, 't:' .. at, 'qn:' .. at)
  if v[1] == 'w' then
    redis.call('HSET', j, 'p:' .. at, ARGV[k + 1])
    redis.call('HINCRBY', j, 'f:' .. r, -1)
    enqueue(job, r, i, v[2], 'q')
    out[#out + 1] = tonumber(i)
  end
end
return out
