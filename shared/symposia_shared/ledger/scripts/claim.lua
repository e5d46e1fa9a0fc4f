-- Leases turns to a pool: first the one a doorbell names (ARGV[5], or ''), then the oldest of the queues ARGV[6..], up to ARGV[3] in all,
-- and no more of a queue than its share among ARGV[4] pools. Only what is queued can be claimed: the sweeper alone declares a lease lost.
-- Answers {what became of the named turn, turns left ready, then per turn: job, round, turn, fence, attempt, engine deaths, kind, spec, payload, queue, '1' if alone}.
local nonce, lease, most, pools, named = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local out = {'none', 0}
local taken = 0
wake()

local function take(job, r, i, limit_lost)
  local j, at = J(job), r .. ':' .. i
  local v = redis.call('HMGET', j, 't:' .. at, 'c:' .. r, 'qn:' .. at, 'k', 'sp', 'p:' .. at, 'e:' .. at, 'al:' .. at)
  if not v[1] then return 'gone' end
  if v[2] then return 'closed' end
  if string.sub(v[1], 1, 1) == 'd' then return 'recorded' end
  if v[1] == 'b' then return 'later' end
  if string.sub(v[1], 1, 1) ~= 'q' then return 'leased' end
  local attempt = redis.call('HINCRBY', j, 'a:' .. at, 1)
  local fence = attempt .. '.' .. nonce .. '.' .. taken
  redis.call('HSET', j, 't:' .. at, 'l:' .. fence, 'cl:' .. at, now)
  dequeue(job, r, i, v[3])
  redis.call('ZADD', P .. 'leases', now + lease, M(job, r, i))
  count('calls_started')
  -- one that failed is queued as 'q', one whose pool or engine died as 'q:FENCE': only the latter repeats a call
  if attempt > 1 and v[1] ~= 'q' then count('calls_repeated') end
  for _, x in ipairs({job, r, i, fence, attempt, v[7] or 0, v[4], v[5], v[6] or '', v[3], v[8] or ''}) do out[#out + 1] = x end
  taken = taken + 1
  return 'ok'
end

if named ~= '' then
  local job, r, i = split(named)
  if most > 0 then out[1] = take(job, r, i) else
    local t = redis.call('HGET', J(job), 't:' .. r .. ':' .. i)
    out[1] = (not t and 'gone') or (string.sub(t, 1, 1) == 'q' and 'queued') or (string.sub(t, 1, 1) == 'l' and 'leased') or (t == 'b' and 'later') or 'recorded'
  end
end
for k = 6, #ARGV do
  local queue = ready(ARGV[k])
  local waiting = redis.call('ZCARD', queue)
  local share = math.min(most - taken, math.ceil(waiting / math.max(pools, 1)))
  if share > 0 then
    for _, m in ipairs(redis.call('ZRANGE', queue, 0, share - 1)) do
      local job, r, i = split(m)
      local got = take(job, r, i)
      if got ~= 'ok' then redis.call('ZREM', queue, m) end
    end
  end
  out[2] = out[2] + redis.call('ZCARD', queue)
end
return out
