-- Leases turns to a pool, up to ARGV[3] in all: in turn one of each queue (ARGV[9..]), that first which was served the longest ago, and of a
-- queue the one with the lowest score; no more of a queue than its share among ARGV[4] pools, none that is paused, none where the pool
-- (ARGV[6]) is; of batches at most ARGV[8], so that a batch never has all of a pool. Only what is queued can be claimed: the sweeper alone
-- declares a lease lost.
-- ARGV[7], where it is not '': 'tokens mean free', what the pool has taken on, the mean of a turn, and its free slots. Of a queue that several
-- pools serve it then takes no turn while another one with room has less to do, by more than a turn; that one is told so on its channel.
-- Answers {what became of the turn a doorbell named (ARGV[5], or ''; with '=' before it that turn is only asked about), turns left ready, then per turn: job, round, turn, fence, attempt,
-- engine deaths, kind, spec, payload, queue, '1' if it is to run alone, '1' if its answer is read as it comes, whose replies it may be given again}.
local nonce, lease, most, pools, named, spare = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[8])
local strict = string.sub(named, 1, 1) == '='
if strict then named = string.sub(named, 2) end
local out = {'none', 0}
local taken, PASSED = 0, 300
local paused = {}
frees()
wake()
for k, v in ipairs(redis.call('HGETALL', P .. 'paused')) do
  if k % 2 == 1 then paused[#paused + 1] = v else paused[paused[#paused]] = v end
end
local stopped = paused['pool:' .. ARGV[6]]

local function take(job, r, i)
  local j, at = J(job), r .. ':' .. i
  local v = redis.call('HMGET', j, 't:' .. at, 'c:' .. r, 'qn:' .. at, 'k', 'sp', 'p:' .. at, 'e:' .. at, 'al:' .. at, 'sm', 'ru', 'pr')
  if not v[1] or v[2] or string.sub(v[1], 1, 1) ~= 'q' then return false end
  if v[11] == 'batch' then
    if spare < 1 then return nil end
    spare = spare - 1
  end
  local attempt = redis.call('HINCRBY', j, 'a:' .. at, 1)
  local fence = attempt .. '.' .. nonce .. '.' .. taken
  redis.call('HSET', j, 't:' .. at, 'l:' .. fence, 'cl:' .. at, now)
  dequeue(job, r, i, v[3])
  redis.call('ZADD', P .. 'leases', now + lease, M(job, r, i))
  count('calls_started')
  -- one that failed is queued as 'q', one whose pool or engine died as 'q:FENCE': only the latter repeats a call
  if attempt > 1 and v[1] ~= 'q' then count('calls_repeated') end
  for _, x in ipairs({job, r, i, fence, attempt, v[7] or 0, v[4], v[5], v[6] or '', v[3], v[8] or '', v[9] or '', v[10] or ''}) do out[#out + 1] = x end
  taken = taken + 1
  return true
end

local open_queues, listed = {}, {}
for k = 9, #ARGV do
  local queue = ARGV[k]
  listed[queue] = true
  local waiting = not stopped and paused['queue:' .. queue] ~= 'paused' and redis.call('ZCARD', ready(queue)) or 0
  if waiting > 0 then
    local share = math.min(most, math.ceil(waiting / math.max(pools, 1)))
    -- where no batch is to be taken, those that have waited so long that they stand before others are passed over
    local turns = share > 0 and redis.call('ZRANGE', ready(queue), 0, spare < most and share + PASSED - 1 or share - 1) or {}
    open_queues[#open_queues + 1] = {queue = queue, turns = turns, at = 0, place = k, had = 0, waiting = waiting, share = share}
  end
end
local many = #open_queues > 1
if many then
  for _, o in ipairs(open_queues) do o.at = tonumber(redis.call('HGET', P .. 'served', o.queue) or 0) end
  table.sort(open_queues, function(a, b) if a.at ~= b.at then return a.at < b.at end return a.place < b.place end)
end
-- Who else serves a queue, has room, and has said so within two seconds: {name, tokens}.
local mine, mean, free = string.match(ARGV[7], '^(%d+) (%d+) (%d+)$')
mine, mean, free = tonumber(mine), tonumber(mean), tonumber(free)
local function rivals(queue)
  local names = mine and redis.call('HGET', P .. 'replicas', queue)
  local found = {}
  for _, name in ipairs(names and cjson.decode(names) or {}) do
    local said = name ~= ARGV[6] and not paused['pool:' .. name] and redis.call('HGET', P .. 'burdens', name)
    local tokens, room, at = string.match(said or '', '^(%d+) (%d+) (%d+)$')
    if tokens and tonumber(room) > 0 and now - tonumber(at) < 2000 then
      found[#found + 1] = {name = name, tokens = tonumber(tokens), room = tonumber(room), at = at}
    end
  end
  return found
end
local yielded = {}
local function yields(o)
  local least
  for _, r in ipairs(o.rivals) do if not least or r.tokens < least.tokens then least = r end end
  if not least or mine + taken * mean <= least.tokens + mean then return false end
  yielded[o.queue] = least
  return true
end
for _, o in ipairs(open_queues) do o.rivals = rivals(o.queue) end
local nth, more = 1, true
while more and taken < most do
  more = false
  for _, o in ipairs(open_queues) do
    local m = taken < most and o.had < o.share and not yielded[o.queue] and o.turns[nth]
    if m and not yields(o) then
      more = true
      local job, r, i = split(m)
      local got = take(job, r, i)
      if got then
        o.had = o.had + 1
        if many then redis.call('HSET', P .. 'served', o.queue, redis.call('HINCRBY', P .. 'served', '#', 1)) end
      elseif got == false then redis.call('ZREM', ready(o.queue), m) end
    end
  end
  nth = nth + 1
end
for _, o in ipairs(open_queues) do
  if o.had > 0 then drained(o.queue, o.had) end
  out[2] = out[2] + o.waiting - o.had
  local to = yielded[o.queue]
  if to then
    -- until it tells anew it counts as having taken one
    redis.call('HSET', P .. 'burdens', to.name, string.format('%d %d %s', to.tokens + mean, to.room, to.at))
    redis.call('PUBLISH', P .. 'nudge:' .. to.name, o.queue)
  end
end
if mine then redis.call('HSET', P .. 'burdens', ARGV[6], string.format('%d %d %d', mine + taken * mean, math.max(0, free - taken), now)) end

if named ~= '' then
  local job, r, i = split(named)
  local v = redis.call('HMGET', J(job), 't:' .. r .. ':' .. i, 'c:' .. r, 'qn:' .. r .. ':' .. i)
  local t = string.sub(v[1] or '', 1, 1)
  if not v[1] then out[1] = 'gone'
  elseif v[2] then out[1] = 'closed'
  elseif t == 'q' and (stopped or paused['queue:' .. v[3]] == 'paused') then out[1] = 'paused'
  elseif t == 'q' and not strict and not listed[v[3]] and taken < most and take(job, r, i) then out[1] = 'ok'
  elseif t == 'q' and yielded[v[3]] then out[1] = 'yielded'
  elseif t == 'q' then out[1] = 'queued'
  elseif t == 'b' then out[1] = 'later'
  elseif t == 'l' then out[1] = string.find(v[1], '.' .. nonce .. '.', 1, true) and 'ok' or 'leased'
  else out[1] = 'recorded' end
end
return out
