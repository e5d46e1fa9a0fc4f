
-- What a tenant may have and has used. Its limits are its own entry in 'limits', else that of '*', else none. A rate is a bucket of one
-- minute's worth that fills evenly: what is left (r: requests, k: tokens) stands with the time it was seen.
local function limits_of(tenant)
  local own = redis.call('HGET', P .. 'limits', tenant) or redis.call('HGET', P .. 'limits', '*')
  return own and cjson.decode(own) or {}
end

local function left_of(tenant, what, limit)
  local v = redis.call('HMGET', P .. 'rate:' .. tenant, what, what .. 'at')
  if not v[1] then return limit end
  return math.min(limit, tonumber(v[1]) + math.max(0, now - tonumber(v[2])) * limit / 60000)
end

local function spend(tenant, what, limit, much)
  local left = math.min(limit, left_of(tenant, what, limit) - much)
  redis.call('HSET', P .. 'rate:' .. tenant, what, left, what .. 'at', now)
  redis.call('PEXPIRE', P .. 'rate:' .. tenant, 86400000)
  return left
end

-- 'limited MS what LIMIT' where a request of so many jobs and tokens is too much now, 'toomany JOBS LIMIT' where it always is; else nil.
local function limited(tenant, jobs, tokens)
  local l = limits_of(tenant)
  if l.concurrent then
    if jobs > l.concurrent then return 'toomany ' .. jobs .. ' ' .. l.concurrent end
    if redis.call('SCARD', P .. 'metered:' .. tenant) + jobs > l.concurrent then return 'limited 1000 jobs ' .. l.concurrent end
  end
  if l.requests_per_minute then
    local left = left_of(tenant, 'r', l.requests_per_minute)
    if left < 1 then return 'limited ' .. math.ceil((1 - left) * 60000 / l.requests_per_minute) .. ' requests ' .. l.requests_per_minute end
  end
  if l.tokens_per_minute then
    -- what asks for more than a minute's worth is let through when the bucket is full, and paid off afterwards
    local left, need = left_of(tenant, 'k', l.tokens_per_minute), math.min(tokens, l.tokens_per_minute)
    if left < need then return 'limited ' .. math.ceil((need - left) * 60000 / l.tokens_per_minute) .. ' tokens ' .. l.tokens_per_minute end
  end
end

-- Counts a request in; answers what is left: 'rates LIMIT LEFT LIMIT LEFT', '-' where there is no limit.
local function metered(tenant, jobs, tokens, all)
  local l = limits_of(tenant)
  local r = l.requests_per_minute and spend(tenant, 'r', l.requests_per_minute, 1)
  local k = l.tokens_per_minute and spend(tenant, 'k', l.tokens_per_minute, all)
  for n, job in ipairs(jobs) do
    redis.call('SADD', P .. 'metered:' .. tenant, job)
    redis.call('HSET', J(job), 'tn', tenant, 'rs', tokens[n] or 0)
  end
  return string.format('rates %s %s %s %s', l.requests_per_minute or '-', r and math.floor(r) or '-', l.tokens_per_minute or '-', k and math.floor(k) or '-')
end

-- A metered job has ended: it no longer counts as in flight, and what it used beyond what was put aside for it is taken, or given back.
local function settled(job, tokens)
  local v = redis.call('HMGET', J(job), 'tn', 'rs')
  if not v[1] then return end
  redis.call('SREM', P .. 'metered:' .. v[1], job)
  local l = limits_of(v[1])
  if l.tokens_per_minute then spend(v[1], 'k', l.tokens_per_minute, tokens - tonumber(v[2])) end
end

-- usage: {tenant, day, keep_s, rows}; a row: model (or '' for the whole job), then the counts in the order of these names
local COUNTED = {'jobs', 'calls', 'prompt_tokens', 'completion_tokens', 'reused'}
local function used(usage)
  local key = P .. 'usage:' .. usage.tenant .. ':' .. usage.day
  for _, row in ipairs(usage.rows) do
    for n, name in ipairs(COUNTED) do
      if row[n + 1] > 0 then redis.call('HINCRBY', key, row[1] .. '|' .. name, row[n + 1]) end
    end
    if row[1] == '' and row[6] > 0 then count('calls_reused', row[6]) end
  end
  redis.call('EXPIRE', key, usage.keep_s)
  redis.call('SADD', P .. 'tenants', usage.tenant)
end
