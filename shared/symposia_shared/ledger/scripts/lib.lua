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
-- A queue is claimed in the order of its scores: when a turn was queued, less for an interactive job and more for a batch; and each turn
-- further back in its party's line counts as STEP later, so that many turns of one party do not keep out the one turn of another.
-- The party is the job's first tag, else the job; its batches are a party of their own, so that no line of a batch stands before what somebody
-- of that party waits for. What is queued again after a kill has had its place in the line.
local function party(class, tags) return cjson.decode(tags)[1] .. (class == 'batch' and '|batch' or '') end
local STEP, CLASS = 20000, {interactive = -30000, batch = 600000}
local function enqueue(job, r, i, queue, state)
  local v = redis.call('HMGET', J(job), 'pr', 'tg')
  local line = state == 'q' and tonumber(i) or 0
  if v[2] then line = redis.call('HINCRBY', P .. 'line:' .. queue, party(v[1], v[2]), 1) - 1 end
  if state ~= 'q' then line = 0 end
  redis.call('HSET', J(job), 't:' .. r .. ':' .. i, state)
  redis.call('ZADD', ready(queue), now + (CLASS[v[1] or ''] or 0) + line * STEP, M(job, r, i))
  redis.call('SADD', P .. 'queues', queue)
end

local function dequeue(job, r, i, queue)
  if redis.call('ZREM', ready(queue), M(job, r, i)) == 0 then return end
  local v = redis.call('HMGET', J(job), 'pr', 'tg')
  if v[2] then redis.call('HINCRBY', P .. 'line:' .. queue, party(v[1], v[2]), -1) end
  if redis.call('EXISTS', ready(queue)) == 0 then
    redis.call('SREM', P .. 'queues', queue)
    redis.call('DEL', P .. 'line:' .. queue)
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

-- turns: flat list of queue, payload, '1' if it follows others, a reply kept from the job this one tries again or '', queue ...
local function open(job, r, deadline, quorum, settle_from, chord, digest, turns)
  local j = J(job)
  redis.call('HSET', j, 'cur', r, 'n:' .. r, #turns / 4, 'd:' .. r, deadline, 'g:' .. r, digest)
  if tonumber(quorum) > 0 then redis.call('HSET', j, 'q:' .. r, quorum) end
  if tonumber(settle_from) > 0 then redis.call('HSET', j, 'sf:' .. r, settle_from) end
  if chord == '1' then redis.call('HSET', j, 'h:' .. r, 1) end
  local kept = 0
  for k = 1, #turns, 4 do
    local i = (k - 1) / 4
    redis.call('HSET', j, 'qn:' .. r .. ':' .. i, turns[k])
    if turns[k + 3] ~= '' then
      redis.call('HSET', j, 't:' .. r .. ':' .. i, 'd:kept', 'v:' .. r .. ':' .. i, turns[k + 3])
      kept = kept + 1
    else
      if turns[k + 1] ~= '' then redis.call('HSET', j, 'p:' .. r .. ':' .. i, turns[k + 1]) end
      if turns[k + 2] == '1' then
        redis.call('HSET', j, 't:' .. r .. ':' .. i, 'w')
        redis.call('HINCRBY', j, 'f:' .. r, 1)
      else
        enqueue(job, r, i, turns[k], 'q')
      end
    end
  end
  redis.call('ZADD', P .. 'deadlines', deadline, job .. '|' .. r)
  redis.call('ZREM', P .. 'advance', job)
  if kept > 0 then
    redis.call('HSET', j, 'in:' .. r, kept, 'sp:' .. r, kept)
    redis.call('ZADD', P .. 'follow', now, job .. '|' .. r)
    if kept == #turns / 4 then close(job, r, 'all') elseif tonumber(quorum) > 0 and kept >= tonumber(quorum) then close(job, r, 'quorum') end
  end
end

-- A job that was to wait for its time is opened; its deadline counts from now.
local function begin(job)
  local j = J(job)
  redis.call('ZREM', P .. 'later', job)
  local v = redis.call('HMGET', j, 'st', 'du', 'dl', 'dq', 'on')
  if v[1] ~= 'later' then return end
  local deadline = now + tonumber(v[3]) - tonumber(v[2])
  redis.call('HSET', j, 'st', 'open', 'dl', deadline)
  redis.call('HDEL', j, 'du', 'dq', 'on')
  if v[5] == '1' then open(job, 0, deadline, 0, 0, '0', '', {v[4], '', '0', ''}) else redis.call('ZADD', P .. 'advance', 0, job) end
end

-- How fast a queue is claimed from: 'since count rate', the rate in turns a second, a mean over windows of five seconds.
local function drain(queue)
  local since, had, rate = string.match(redis.call('HGET', P .. 'drain', queue) or '', '^(%d+) (%d+) ([%d.]+)$')
  return tonumber(since or now), tonumber(had or 0), tonumber(rate or 0)
end

local function drained(queue, turns)
  local since, had, rate = drain(queue)
  had = had + turns
  if now - since > 60000 then since, had = now, turns
  elseif now - since >= 5000 then
    local fresh = had * 1000 / (now - since)
    rate, since, had = rate > 0 and (rate + fresh) / 2 or fresh, now, 0
  end
  redis.call('HSET', P .. 'drain', queue, string.format('%d %d %.3f', since, had, rate))
end

-- Seconds until a queue will have worked so many turns off: 1 to 600, 5 where it is not known.
local function seconds_for(queue, turns)
  local _, _, rate = drain(queue)
  return rate > 0 and math.max(1, math.min(600, math.ceil(turns / rate))) or 5
end

-- Redis refuses a script's first write at its maxmemory, and lets one go on that has written: what frees memory writes this first.
local function frees() redis.call('DEL', P .. 'nothing') end
