// An OpenID Connect server for tests: npm's oidc-provider with two users and a few cameras.
//
// PKCE is required, each refresh rotates the refresh token, and the use of an old one ends the
// grant. `POST /_control` counts what was called, and moves expiry times instead of waiting.

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

import Provider from 'oidc-provider';

const { values: options } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    'client-id': { type: 'string' },
    'client-secret': { type: 'string' },
    'access-token-lifetime': { type: 'string', default: '3600' }, // seconds
    'refresh-token-lifetime': { type: 'string', default: '86400' }, // seconds
  },
});

const PASSWORD = 'cameras';
const USERS = {
  'anna@example.com': ['Front gate', 'Parking lot', 'Warehouse', 'Loading dock'],
  'bob@example.com': ['Shop floor', 'Back door'],
};

const lifetimes = {
  access: Number(options['access-token-lifetime']),
  refresh: Number(options['refresh-token-lifetime']),
};
const disabled = new Set(); // users
let tokenCalls = [];
let revocations = [];
let usedRefreshTokens = [];
let answersToLose = 0;
let answerDelay = 0; // seconds
let forbidsDeadBearers = false; // by 403; else 401

// -- the adapter: all in memory ------------------------------------------------------------------

const stored = new Map(); // of "<model>:<id>" to what oidc-provider wants kept

class MemoryAdapter {
  constructor(model) {
    this.model = model;
  }

  async upsert(id, payload) {
    stored.set(`${this.model}:${id}`, payload);
  }

  async find(id) {
    return stored.get(`${this.model}:${id}`);
  }

  async findByUid(uid) {
    return all(this.model).find((payload) => payload.uid === uid);
  }

  async consume(id) {
    (await this.find(id)).consumed = now();
  }

  async destroy(id) {
    stored.delete(`${this.model}:${id}`);
  }

  async revokeByGrantId(grantId) {
    for (const [key, payload] of stored) {
      if (key.startsWith(`${this.model}:`) && payload.grantId === grantId) stored.delete(key);
    }
  }
}

function all(model) {
  return [...stored].filter(([key]) => key.startsWith(`${model}:`)).map(([, payload]) => payload);
}

function now() {
  return Math.floor(Date.now() / 1000);
}

// -- the provider --------------------------------------------------------------------------------

const server = createServer();
await new Promise((resolve, reject) => {
  server.on('error', reject);
  server.listen(Number(options.port), '127.0.0.1', resolve);
}).catch((error) => {
  console.error(`cannot listen on port ${options.port}: ${error.code}`);
  process.exit(1);
});
const origin = `http://127.0.0.1:${server.address().port}`;

const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
const provider = new Provider(origin, {
  adapter: MemoryAdapter,
  clients: [
    {
      client_id: options['client-id'],
      client_secret: options['client-secret'],
      application_type: 'native', // so that the port of a loopback redirect URI is free
      redirect_uris: ['http://127.0.0.1/auth/callback'],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'client_secret_basic',
      id_token_signed_response_alg: 'ES256',
    },
  ],
  claims: { openid: ['sub'], email: ['email'] },
  scopes: ['openid', 'offline_access', 'email', 'cameras'],
  cookies: { keys: [randomBytes(32).toString('hex')] },
  jwks: { keys: [{ ...key.export({ format: 'jwk' }), kid: 'only', use: 'sig', alg: 'ES256' }] },
  features: { devInteractions: { enabled: false }, revocation: { enabled: true } },
  findAccount: (ctx, email) => {
    const known = email in USERS && !disabled.has(email);
    return known ? { accountId: email, claims: () => ({ sub: email, email }) } : undefined;
  },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: {
    AccessToken: () => lifetimes.access,
    AuthorizationCode: 60,
    Grant: 86_400,
    IdToken: 3600,
    Interaction: 600,
    RefreshToken: () => lifetimes.refresh,
    Session: 86_400,
  },
});

provider.use(async (ctx, next) => {
  await next();
  if (ctx.oidc?.route === 'revocation') revocations.push(ctx.status);
  if (ctx.oidc?.route !== 'token') return;
  tokenCalls.push({
    grant_type: ctx.oidc.params?.grant_type,
    status: ctx.status,
    error: ctx.body?.error,
    reason: ctx.body?.error_description,
  });
  if (ctx.status === 200 && ctx.oidc.params.refresh_token) {
    usedRefreshTokens.push(ctx.oidc.params.refresh_token);
  }
  await sleep(1000 * answerDelay);
  if (answersToLose > 0) {
    answersToLose -= 1;
    ctx.status = 502;
    ctx.body = 'the answer was lost';
  }
});
provider.on('server_error', (ctx, error) => console.error(error));

// -- pages for people ----------------------------------------------------------------------------

async function interact(request, response) {
  const { prompt, params, session, grantId } = await provider.interactionDetails(request, response);
  if (request.method === 'GET') {
    const fields = prompt.name === 'login'
      ? '<input name="email"> <input name="password" type="password"> <button>Log in</button>'
      : '<button name="decision" value="allow">Allow</button>'
        + ' <button name="decision" value="deny">Deny</button>';
    response.setHeader('Content-Type', 'text/html; charset=utf-8');
    response.end(`<title>${prompt.name}</title><form method="post">${fields}</form>`);
    return;
  }
  const form = new URLSearchParams(await read(request));
  const result = {};
  if (prompt.name === 'login') {
    const email = form.get('email');
    if (!(email in USERS) || disabled.has(email) || form.get('password') !== PASSWORD) {
      response.statusCode = 401;
      response.end('Wrong address or password.');
      return;
    }
    result.login = { accountId: email };
  } else if (form.get('decision') === 'allow') {
    const grant = grantId
      ? await provider.Grant.find(grantId)
      : new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    result.consent = { grantId: await grant.save() };
  } else {
    Object.assign(result, { error: 'access_denied', error_description: 'The user said no.' });
  }
  const merging = { mergeWithLastSubmission: !result.error };
  await provider.interactionFinished(request, response, result, merging);
}

// -- the API -------------------------------------------------------------------------------------

async function cameras(request, response) {
  const [, bearer] = /^Bearer (\S+)$/.exec(request.headers.authorization ?? '') ?? [];
  const token = bearer && (await provider.AccessToken.find(bearer));
  if (!token || !token.scopes.has('cameras') || disabled.has(token.accountId)) {
    if (!forbidsDeadBearers) {
      response.setHeader('WWW-Authenticate', 'Bearer error="invalid_token"');
    }
    json(response, forbidsDeadBearers ? 403 : 401, {});
    return;
  }
  json(response, 200, USERS[token.accountId].map((name, id) => ({ cameraId: id + 1, name })));
}

// -- the test's own door -------------------------------------------------------------------------

async function control(request, response) {
  const commands = JSON.parse((await read(request)) || '{}');
  if (commands.reset) {
    stored.clear();
    disabled.clear();
    [answersToLose, answerDelay, forbidsDeadBearers] = [0, 0, false];
    lifetimes.access = Number(options['access-token-lifetime']);
  }
  if (commands.reset || commands.forget_calls) {
    [tokenCalls, revocations, usedRefreshTokens] = [[], [], []];
  }
  if (commands.access_token_lifetime) lifetimes.access = commands.access_token_lifetime;
  if (commands.expire_access_tokens) all('AccessToken').forEach(expire);
  if (commands.expire_refresh_tokens) all('RefreshToken').forEach(expire);
  if (commands.revoke_user) disabled.add(commands.revoke_user);
  if (commands.lose_token_answers) answersToLose = commands.lose_token_answers;
  forbidsDeadBearers = commands.forbid_dead_bearers ?? forbidsDeadBearers;
  answerDelay = commands.delay_token_answers ?? answerDelay;
  json(response, 200, {
    token_calls: tokenCalls,
    revocations,
    used_refresh_tokens: usedRefreshTokens, // oldest first
    living_refresh_tokens: all('RefreshToken').filter((t) => !t.consumed && t.exp > now()).length,
  });
}

function expire(payload) {
  payload.exp = now() - 60; // a token is taken for 15 s longer than it lives
}

// -- HTTP ----------------------------------------------------------------------------------------

async function read(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

function json(response, status, value) {
  response.statusCode = status;
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify(value));
}

const answer = provider.callback();
server.on('request', async (request, response) => {
  try {
    const { pathname } = new URL(request.url, origin);
    if (pathname.startsWith('/interaction/')) await interact(request, response);
    else if (pathname === '/rest/v2.4/cameras') await cameras(request, response);
    else if (pathname === '/_control') await control(request, response);
    else answer(request, response);
  } catch (error) {
    console.error(error);
    response.statusCode = 500;
    response.end('failed');
  }
});

const main = createRequire(import.meta.url).resolve('oidc-provider'); // …/oidc-provider/lib/index.js
const { version } = JSON.parse(readFileSync(new URL('../package.json', `file://${main}`)));
const versions = { 'oidc-provider': version, node: process.versions.node };
console.log(JSON.stringify({ versions, has_grace_period: false }));
