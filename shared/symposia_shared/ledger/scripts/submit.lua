-- Records jobs. First the limits: turns of one queue, jobs in all, share of maxmemory. Then per job: id, kind, spec, deadline_ms, bytes of the
-- longest prompt, models (joined by a newline), '1' if it is of one turn, rounds kept of the job it tries again, class, tags (JSON), due at,
-- schedule and the time of its next occurrence, what each model must be able to do (joined by a newline; 'a|b': either), '1' if somebody
-- reads its answer as it comes, whose replies it may be given again ('' for nobody's).
-- ARGV[4]: '' or a tenant's gate (JSON: tenant, tokens of each job, and of an idempotency key: once, entry, life). Behind a gate jobs are recorded
-- together or not at all; the answer then is one line 'once ENTRY' where the key was used before, 'limited' or 'toomany' where the tenant has
-- had its share, else a line per job and the rates that are left.
-- A job of one turn has its round opened here; anything else waits in 'advance' for the coordinator; a later one in 'later' for its time.
-- Answers one line per job, which names the list its doorbell goes to; once one was refused because all is busy, so are those behind it.
local most_turns, most_jobs = tonumber(ARGV[1]), tonumber(ARGV[2])
local out, busy = {}, nil
local memory = redis.call('INFO', 'memory')
local used, most_memory = tonumber(string.match(memory, 'used_memory:(%d+)')), tonumber(string.match(memory, 'maxmemory:(%d+)'))
local full = most_memory > 0 and used > most_memory * tonumber(ARGV[3])

local function crowded(queue)
  local waiting = redis.call('ZCARD', ready(queue))
  if waiting >= most_turns then return 'busy ' .. seconds_for(queue, waiting - most_turns * 0.9) .. ' queue ' .. waiting .. ' ' .. queue end
  local jobs = redis.call('ZCARD', P .. 'jobs')
  if jobs >= most_jobs then return 'busy ' .. seconds_for(queue, jobs - most_jobs * 0.9) .. ' jobs ' .. jobs .. ' ' .. queue end
  if full then return 'busy ' .. seconds_for(queue, math.max(1, waiting / 10)) .. ' memory ' .. used .. ' ' .. queue end
end

-- The first need that a placement's capabilities do not meet; what a pool has not said of a checkpoint is not held against it.
local function unmet(place, needs)
  if type(place.capabilities) ~= 'table' then return nil end
  local can = {}
  for _, word in ipairs(place.capabilities) do can[word] = true end
  for need in string.gmatch(needs, '[^\n]+') do
    local met = false
    for word in string.gmatch(need, '[^|]+') do met = met or can[word] end
    if not met then return need end
  end
end

-- Why the job at ARGV[k] cannot be recorded, and the queue of its last model.
local function refusal(k)
  local job, bytes, due, schedule = ARGV[k], tonumber(ARGV[k + 4]), tonumber(ARGV[k + 10]), ARGV[k + 11]
  local refused, queue = nil, nil
  for model in string.gmatch(ARGV[k + 5], '[^\n]+') do
    local where = redis.call('HGET', P .. 'placed', string.sub(model, 1, 5) == 'test/' and 'test/*' or model)
    if not where then refused = 'unplaced ' .. model break end
    local place = cjson.decode(where)
    local bounded = type(place.context) == 'number' and type(place.longest_token_bytes) == 'number'
    if bounded and bytes > place.context * place.longest_token_bytes then
      refused = 'toolong ' .. place.context .. ' ' .. place.longest_token_bytes .. ' ' .. model break
    end
    local need = unmet(place, ARGV[k + 13])
    if need then refused = 'unable ' .. need .. ' ' .. model break end
    queue = place.queue
    if redis.call('HGET', P .. 'paused', 'queue:' .. queue) == 'draining' then refused = 'draining ' .. model break end
    busy = busy or crowded(queue)
  end
  if refused then return refused
  elseif redis.call('EXISTS', J(job)) == 1 or redis.call('ZSCORE', P .. 'ended', job) then return 'exists'
  elseif schedule ~= '' and tonumber(redis.call('ZSCORE', P .. 'occurrences', schedule) or -1) ~= due then return 'exists'
  elseif busy then return busy end
  return nil, queue
end

local function recorded(k, queue)
  local job, kind, spec, deadline = ARGV[k], ARGV[k + 1], ARGV[k + 2], tonumber(ARGV[k + 3])
  local keeps, class, tags, due, schedule, following = tonumber(ARGV[k + 7]), ARGV[k + 8], ARGV[k + 9], tonumber(ARGV[k + 10]), ARGV[k + 11], ARGV[k + 12]
  local later = schedule == '' and due > now
  redis.call('HSET', J(job), 'st', later and 'later' or 'open', 'k', kind, 'sp', spec, 'cur', -1, 'at', now, 'dl', math.max(now, due) + deadline)
  redis.call('ZADD', P .. 'jobs', now, job)
  if class ~= '' then redis.call('HSET', J(job), 'pr', class) end
  if ARGV[k + 14] == '1' then redis.call('HSET', J(job), 'sm', 1) end
  if ARGV[k + 15] ~= '' then redis.call('HSET', J(job), 'ru', ARGV[k + 15]) end
  if tags ~= '' then
    redis.call('HSET', J(job), 'tg', tags)
    for _, tag in ipairs(cjson.decode(tags)) do redis.call('SADD', P .. 'tag:' .. tag, job) end
  end
  if keeps >= 0 then redis.call('HSET', J(job), 'kp', keeps) end
  if keeps > 0 then redis.call('HSET', J(job), 'cur', keeps - 1, 'n:' .. (keeps - 1), 0, 'd:' .. (keeps - 1), now, 'c:' .. (keeps - 1), 'all') end
  count('jobs_submitted')
  if schedule ~= '' then redis.call('ZADD', P .. 'occurrences', following, schedule) end
  if later then
    redis.call('HSET', J(job), 'du', due, 'dq', queue, 'on', ARGV[k + 6])
    redis.call('ZADD', P .. 'later', due, job)
  elseif ARGV[k + 6] == '1' then open(job, 0, now + deadline, 0, 0, '0', '', {queue, '', '0', ''})
  else redis.call('ZADD', P .. 'advance', now, job) end
  return (later and 'later ' or 'ok ') .. (redis.call('HGET', P .. 'bells', queue) or queue)
end

local FIRST, EACH = 5, 16
if ARGV[4] == '' then
  for k = FIRST, #ARGV, EACH do
    local refused, queue = refusal(k)
    out[#out + 1] = refused or recorded(k, queue)
  end
  return out
end

local gate = cjson.decode(ARGV[4])
local was = gate.once and redis.call('GET', P .. 'once:' .. gate.once)
if was then return {'once ' .. was} end
local jobs, queues, all, refused_any = {}, {}, 0, false
for _, tokens in ipairs(gate.tokens) do all = all + tokens end
for k = FIRST, #ARGV, EACH do jobs[#jobs + 1] = ARGV[k] end
local over = gate.tenant and limited(gate.tenant, #jobs, all)
if over then return {over} end
for n, _ in ipairs(jobs) do
  local refused, queue = refusal(FIRST + (n - 1) * EACH)
  out[n], queues[n], refused_any = refused or 'not recorded', queue, refused_any or refused ~= nil
end
if refused_any then return out end
for n, _ in ipairs(jobs) do out[n] = recorded(FIRST + (n - 1) * EACH, queues[n]) end
if gate.once then redis.call('SET', P .. 'once:' .. gate.once, gate.entry, 'PX', gate.life) end
out[#out + 1] = gate.tenant and metered(gate.tenant, jobs, gate.tokens, all) or 'rates - - - -'
return out
