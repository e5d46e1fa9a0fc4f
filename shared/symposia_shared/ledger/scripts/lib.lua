-- Shared by every step. KEYS[1] is the prefix of all our keys; time is Redis' own, in milliseconds.
local P = KEYS[1]
local T = redis.call('TIME')
local now = T[1] * 1000 + math.floor(T[2] / 1000)

local function J(job) return P .. 'job:' .. job end
local function M(job, r, i) return job .. '|' .. r .. '|' .. i end
local function split(m) return string.match(m, '^(.-)|(%-?%d+)|?(%d*)$') end
local function count(name, by) redis.call('HINCRBY', P .. 'stats', name, by or 1) end
local function ready(queue) return P .. 'ready:' .. queue end

-- A turn's state: 'w' follows others that have not ended | 'q' queued | 'l:FENCE' leased | 'q:FENCE' queued again after its lease was lost | 'd:FENCE' recorded | 'x' never will be | 'b' backs off before it is tried again
local function enqueue(job, r, i, queue, state)
  redis.call('HSET', J(job), 't:' .. r .. ':' .. i, state)
  redis.call('ZADD', ready(queue), now, M(job, r, i))
  redis.call('SADD', P .. 'queues', queue)
end

local function dequeue(job, r, i, queue)
  if redis.call('ZREM', ready(queue), M(job, r, i)) == 1 and redis.call('EXISTS', ready(queue)) == 0 then
    redis.call('SREM', P .. 'queues', queue)
  end
end

-- Turns that were to be tried again later are queued once their time has come.
local function wake()
  for _, m in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', now, 'LIMIT', 0, 100)) do
    local job, r, i = split(m)
    redis.call('ZREM', P .. 'delayed', m)
    local v = redis.call('HMGET', J(job), 't:' .. r .. ':' .. i, 'qn:' .. r .. ':' .. i)
    if v[1] == 'b' then enqueue(job, r, i, v[2], 'q') end
  end
end

-- The one compare-and-set by which a round ends: the first caller wins and fixes which replies count.
local function close(job, r, reason)
  local j = J(job)
  local v = redis.call('HMGET', j, 'n:' .. r, 'd:' .. r, 'in:' .. r, 'c:' .. r)
  if not v[1] then return 'gone' end
  if v[4] then return 'was' end
  local n, inn = tonumber(v[1]), tonumber(v[3] or '0')
  if reason == 'all' and inn < n then return 'notyet' end
  if reason == 'deadline' and now < tonumber(v[2]) then return 'notyet' end
  local counted = {}
  for i = 0, n - 1 do
    local t = redis.call('HMGET', j, 't:' .. r .. ':' .. i, 'qn:' .. r .. ':' .. i)
    if string.sub(t[1], 1, 1) == 'd' then
      counted[#counted + 1] = i
    else
      if t[1] == 'b' then redis.call('ZREM', P .. 'delayed', M(job, r, i)) end
      if string.sub(t[1], 1, 1) == 'q' or t[1] == 'w' or t[1] == 'b' then redis.call('HSET', j, 't:' .. r .. ':' .. i, 'x') end
      dequeue(job, r, i, t[2])
      redis.call('ZREM', P .. 'leases', M(job, r, i))
    end
  end
  redis.call('HSET', j, 'c:' .. r, reason, 'k:' .. r, table.concat(counted, ','), 'ca:' .. r, now)
  redis.call('ZREM', P .. 'deadlines', job .. '|' .. r)
  redis.call('ZREM', P .. 'follow', job .. '|' .. r)
  redis.call('ZADD', P .. 'advance', now, job)
  return 'won'
end

-- turns: flat list of queue, payload, '1' if it follows others, queue ...
local function open(job, r, deadline, quorum, settle_from, chord, digest, turns)
  local j = J(job)
  redis.call('HSET', j, 'cur', r, 'n:' .. r, #turns / 3, 'd:' .. r, deadline, 'g:' .. r, digest)
  if tonumber(quorum) > 0 then redis.call('HSET', j, 'q:' .. r, quorum) end
  if tonumber(settle_from) > 0 then redis.call('HSET', j, 'sf:' .. r, settle_from) end
  if chord == '1' then redis.call('HSET', j, 'h:' .. r, 1) end
  for k = 1, #turns, 3 do
    local i = (k - 1) / 3
    redis.call('HSET', j, 'qn:' .. r .. ':' .. i, turns[k])
    if turns[k + 1] ~= '' then redis.call('HSET', j, 'p:' .. r .. ':' .. i, turns[k + 1]) end
    if turns[k + 2] == '1' then
      redis.call('HSET', j, 't:' .. r .. ':' .. i, 'w')
      redis.call('HINCRBY', j, 'f:' .. r, 1)
    else
      enqueue(job, r, i, turns[k], 'q')
    end
  end
  redis.call('ZADD', P .. 'deadlines', deadline, job .. '|' .. r)
  redis.call('ZREM', P .. 'advance', job)
end
