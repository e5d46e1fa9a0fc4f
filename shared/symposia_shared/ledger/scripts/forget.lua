-- The result is in S3: the job leaves the ledger, and whoever waits is told. ARGV: job, state, kind, conflicts, its dead letter (JSON) or '',
-- what it used (JSON) or ''.
frees()

-- Somebody wished to be told of this end, or its tenant of every end but those of a batch's lines: notices are to be made.
local function tell(job, tags)
  local tenant, line = 'default', false
  for _, tag in ipairs(tags) do
    tenant = string.match(tag, '^tenant:(.+)$') or tenant
    line = line or string.sub(tag, 1, 6) == 'batch:'
  end
  if redis.call('EXISTS', P .. 'tell:' .. job) == 1 or (not line and redis.call('EXISTS', P .. 'hooks:' .. tenant) == 1) then
    redis.call('ZADD', P .. 'tellings', now, job)
  end
end

local job, state = ARGV[1], ARGV[2]
if redis.call('EXISTS', J(job)) == 0 then return 0 end
local cur = redis.call('HGET', J(job), 'cur')
local tags = redis.call('HGET', J(job), 'tg')
for _, tag in ipairs(tags and cjson.decode(tags) or {}) do redis.call('SREM', P .. 'tag:' .. tag, job) end
tell(job, tags and cjson.decode(tags) or {})
if ARGV[6] ~= '' then
  local usage = cjson.decode(ARGV[6])
  settled(job, usage.tokens)
  used(usage)
else settled(job, 0) end
redis.call('UNLINK', J(job))
redis.call('ZREM', P .. 'later', job)
redis.call('ZREM', P .. 'jobs', job)
redis.call('ZREM', P .. 'advance', job)
redis.call('ZREM', P .. 'deadlines', job .. '|' .. cur)
redis.call('ZADD', P .. 'ended', now, job)
redis.call('HSET', P .. 'endings', job, state .. ' ' .. ARGV[3])
local over = redis.call('ZCARD', P .. 'ended') - 10000
if over > 0 then
  local old = redis.call('ZRANGE', P .. 'ended', 0, over - 1)
  redis.call('HDEL', P .. 'endings', unpack(old))
  redis.call('ZREM', P .. 'ended', unpack(old))
end
if ARGV[5] ~= '' then
  redis.call('ZADD', P .. 'dead', now, job)
  redis.call('HSET', P .. 'letters', job, ARGV[5])
  count('dead_letters')
  local dead = redis.call('ZCARD', P .. 'dead') - 10000
  if dead > 0 then
    local old = redis.call('ZRANGE', P .. 'dead', 0, dead - 1)
    redis.call('HDEL', P .. 'letters', unpack(old))
    redis.call('ZREM', P .. 'dead', unpack(old))
  end
end
count('jobs_' .. state)
if tonumber(ARGV[4]) > 0 then count('commit_conflicts', tonumber(ARGV[4])) end
redis.call('PUBLISH', P .. 'ended', job)
return 1
