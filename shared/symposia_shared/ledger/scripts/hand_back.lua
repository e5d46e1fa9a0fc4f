-- A pool gives leased turns back: its engine died (ARGV[1] = 'killed'), or it stops before they ended ('unused').
-- Per turn: job, round, turn, fence.
frees()
local given = 0
for k = 2, #ARGV, 4 do
  local job, r, i, fence = ARGV[k], ARGV[k + 1], ARGV[k + 2], ARGV[k + 3]
  local at = r .. ':' .. i
  local v = redis.call('HMGET', J(job), 't:' .. at, 'c:' .. r, 'qn:' .. at)
  if v[1] == 'l:' .. fence and not v[2] then
    redis.call('ZREM', P .. 'leases', M(job, r, i))
    enqueue(job, r, i, v[3], 'q:' .. fence)
    given = given + 1
    -- queued as 'q:FENCE' it keeps its place before what is new; but only a call that was cut off is repeated when it is claimed again
    if ARGV[1] ~= 'killed' then redis.call('HSET', J(job), 't:' .. at, 'q') end
    if ARGV[1] == 'killed' then
      redis.call('HINCRBY', J(job), 'e:' .. at, 1)
      count('in_flight_at_kills')
    else
      -- (a repeat that is handed back was counted when it was claimed, and is the same one when it is claimed again)
      redis.call('HINCRBY', J(job), 'a:' .. at, -1)
      count('calls_started', -1)
      count('calls_handed_back')
    end
  end
end
return given
