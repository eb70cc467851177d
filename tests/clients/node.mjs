// ioredis and node-redis as applications use them, through the gateway: node.mjs MODULES HOST PORT
//
// Every worker counts what it did and checks each answer. No client may connect twice: an error of any kind ends the run
// with status 1. Says "progress N" while it goes on (N: rounds of the slowest worker), ends when a line comes on its
// standard input, and then compares what the server holds with what was counted.

import { createRequire } from 'node:module';
import { isDeepStrictEqual } from 'node:util';

const [modules, host, portText] = process.argv.slice(2);
const port = Number(portText);
const require = createRequire(`${modules}/`);
const IoRedis = require('ioredis');
const { createClient, createClientPool, defineScript } = require('redis');

const PATIENCE = 30_000;
const BUMP = "redis.call('RPUSH', KEYS[2], ARGV[1]) return redis.call('INCR', KEYS[1])";

let stop = false;
let ended = false;
const failures = [];
const rounds = {};
const range = (length) => Array.from({ length }, (_, n) => n);
const soon = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function fail(name, error) {
  failures.push(`${name}: ${error?.stack ?? error}`);
  stop = true;
}

function equal(found, expected, what) {
  if (!isDeepStrictEqual(found, expected)) {
    throw new Error(`${what}: ${JSON.stringify(found)?.slice(0, 300)} instead of ${JSON.stringify(expected)?.slice(0, 300)}`);
  }
}

/// Messages of one way in which a channel is heard.
class Heard {
  constructor(name) {
    this.name = name;
    this.next = 0;
    this.end = new Promise((resolve) => (this.resolve = resolve));
  }
  take(text) {
    if (text === 'end') return this.resolve();
    try {
      equal(Number(text), this.next, `${this.name}: message`);
    } catch (error) {
      fail(this.name, error);
      this.resolve();
    }
    this.next += 1;
    rounds[this.name] = (rounds[this.name] ?? 0) + 1;
  }
}

// What both libraries are put through, in the words of `a`, an adapter: one of the two below.

async function counter(a, tick) {
  let n = 0;
  while (!stop) {
    n += 1;
    equal(await a.call('incr', a.key('counter')), n, 'counter');
    equal(await a.call('set', a.key('value'), `${n}`), 'OK', 'set');
    equal(await a.call('get', a.key('value')), `${n}`, 'get');
    tick();
  }
  return async () => equal(await a.call('get', a.key('counter')), `${n}`, 'counter at the end');
}

/// Many at once on one connection: the library pipelines them by itself.
async function concurrent(a, tick) {
  let n = 0;
  while (!stop) {
    const found = await Promise.all(range(50).map(() => a.auto('incr', a.key('concurrent'))));
    equal(found, range(50).map((step) => n + step + 1), 'concurrent');
    n += 50;
    tick();
  }
  return async () => equal(await a.call('get', a.key('concurrent')), `${n}`, 'concurrent at the end');
}

async function pipelines(a, tick) {
  let n = 0;
  while (!stop) {
    const commands = range(20).map((step) => ['rpush', a.key('list'), `${n * 20 + step}`]);
    equal(await a.batch(commands, n % 2 === 1), range(20).map((step) => n * 20 + step + 1), 'pipeline');
    n += 1;
    tick();
  }
  return async () => equal(await a.call('lrange', a.key('list'), '0', '-1'), range(n * 20).map(String), 'list at the end');
}

async function optimist(a, tick, sums) {
  let n = 0;
  while (!stop) {
    if (await a.increment(a.key('contended'))) n += 1;
    tick();
  }
  sums.push(n);
  return async () =>
    equal(Number(await a.call('get', a.key('contended'))), sums.reduce((sum, one) => sum + one), 'contended');
}

async function scripts(a, tick) {
  const sha = await a.load("return {KEYS[1], ARGV[1], 'bare'}");
  let n = 0;
  while (!stop) {
    n += 1;
    equal(await a.bump(a.key('scripted'), a.key('script-list'), `${n}`), n, 'script');
    // without the library's answer to NOSCRIPT
    equal(await a.evalsha(sha, a.key('scripted'), `${n}`), [a.key('scripted'), `${n}`, 'bare'], 'evalsha');
    tick();
  }
  return async () =>
    equal(await a.call('lrange', a.key('script-list'), '0', '-1'), range(n).map((x) => `${x + 1}`), "the script's list");
}

async function producer(a, tick, queue) {
  let n = 0;
  for (; !stop; n += 1) {
    await a.call('rpush', a.key('queue'), `${n}`);
    tick();
    await soon(1);
  }
  queue.produced = n;
  await a.call('rpush', a.key('queue'), 'end', 'end');
}

async function consumer(a, tick, queue) {
  const pop = await a.blocking();
  const taken = [];
  for (;;) {
    const element = await pop(a.key('queue'), 1);
    if (element === 'end') break;
    if (element !== null) taken.push(Number(element));
    tick();
  }
  equal(taken, [...taken].sort((x, y) => x - y), 'order of the queue');
  queue.taken.push(...taken);
  return async () => equal(queue.taken.sort((x, y) => x - y), range(queue.produced), 'the queue');
}

async function publisher(a, tick, heard) {
  let n = 0;
  for (; !stop; n += 1) {
    equal(await a.call('publish', a.key('news'), `${n}`), 2, 'receivers');
    equal(await a.call('spublish', a.key('shard'), `${n}`), 1, 'receivers of a shard');
    tick();
  }
  await a.call('publish', a.key('news'), 'end');
  await a.call('spublish', a.key('shard'), 'end');
  await Promise.all(heard.map((one) => one.end));
  return async () => equal(heard.map((one) => one.next), heard.map(() => n), 'messages heard');
}

async function scanner(a, tick) {
  const names = range(300).map((n) => a.key(`fixed:${n}`));
  await a.call('mset', ...names.flatMap((name) => [name, '1']));
  while (!stop) {
    const found = new Set(await a.scan(a.key('fixed:*')));
    equal(found, new Set(names), 'a scan');
    tick();
  }
}

/// A client that keeps what it reads, until the server tells it that this is old.
async function cached(a, tick) {
  const client = await a.caching();
  for (let n = 1; !stop; n += 1) {
    await a.call('set', a.key('cached'), `${n}`);
    const deadline = Date.now() + PATIENCE;
    while ((await client.get(a.key('cached'))) !== `${n}`) {
      if (Date.now() > deadline) throw new Error(`an old value stays in the cache: ${n}`);
      await soon(1);
    }
    for (const _ of range(3)) equal(await client.get(a.key('cached')), `${n}`, 'the cache');
    tick();
  }
}

class Io {
  name = 'ioredis';
  clients = [];
  key = (text) => `${this.name}:${text}`;

  /// One try: a connection that is lost is an error.
  client(options = {}) {
    const client = new IoRedis({ host, port, retryStrategy: null, maxRetriesPerRequest: 0, ...options });
    client.on('error', (error) => fail(this.name, error));
    client.on('close', () => ended || fail(this.name, 'a connection was closed'));
    client.defineCommand('bump', { numberOfKeys: 2, lua: BUMP });
    this.clients.push(client);
    return client;
  }

  async open() {
    this.pool = range(4).map(() => this.client());
    this.automatic = this.client({ enableAutoPipelining: true });
    this.turn = 0;
    const subscriber = this.client();
    this.heard = ['message', 'pmessage', 'smessage'].map((way) => new Heard(`${this.name} ${way}`));
    await subscriber.subscribe(this.key('news'));
    await subscriber.psubscribe(this.key('n*'));
    await subscriber.ssubscribe(this.key('shard'));
    subscriber.on('message', (_, text) => this.heard[0].take(text));
    subscriber.on('pmessage', (_, __, text) => this.heard[1].take(text));
    subscriber.on('smessage', (_, text) => this.heard[2].take(text));
  }

  any = () => this.pool[this.turn++ % this.pool.length];
  call = (name, ...args) => this.any().call(name, ...args);
  auto = (name, ...args) => this.automatic[name](...args);
  load = (script) => this.any().script('LOAD', script);
  evalsha = (sha, key, arg) => this.any().evalsha(sha, 1, key, arg);
  bump = (...args) => this.any().bump(...args);

  async batch(commands, transaction) {
    const replies = await (transaction ? this.any().multi(commands) : this.any().pipeline(commands)).exec();
    return replies.map(([error, reply]) => {
      if (error) throw error;
      return reply;
    });
  }

  async increment(key) {
    this.own ??= this.client();
    // two of them share this connection's turn: one after the other
    const before = this.last ?? Promise.resolve();
    const mine = before.then(async () => {
      await this.own.watch(key);
      const value = Number((await this.own.get(key)) ?? 0);
      const replies = await this.own.multi().set(key, value + 1).exec();
      return replies !== null;
    });
    this.last = mine.catch(() => {});
    return mine;
  }

  async blocking() {
    const client = this.client();
    return async (key, seconds) => (await client.blpop(key, seconds))?.[1] ?? null;
  }

  async scan(match) {
    const found = [];
    for await (const keys of this.any().scanStream({ match, count: 20 })) found.push(...keys);
    return found;
  }

  close = () => this.clients.forEach((client) => client.disconnect());
}

class Node {
  clients = [];
  key = (text) => `${this.name}:${text}`;

  constructor(RESP) {
    this.RESP = RESP;
    this.name = `node-redis-${RESP}`;
    this.options = {
      RESP,
      socket: { host, port, reconnectStrategy: false },
      scripts: {
        bump: defineScript({
          NUMBER_OF_KEYS: 2,
          SCRIPT: BUMP,
          parseCommand: (parser, counter, list, value) => {
            parser.pushKey(counter);
            parser.pushKey(list);
            parser.push(value);
          },
          transformReply: (reply) => reply,
        }),
      },
    };
  }

  async client(options = {}) {
    const client = createClient({ ...this.options, ...options });
    let ready = 0;
    client.on('error', (error) => ended || fail(this.name, error));
    client.on('reconnecting', () => fail(this.name, 'a connection was lost'));
    client.on('ready', () => (ready += 1) > 1 && fail(this.name, 'connected twice'));
    await client.connect();
    this.clients.push(client);
    return client;
  }

  async open() {
    this.automatic = await this.client();
    this.pool = createClientPool(this.options, { minimum: 2, maximum: 6 });
    this.pool.on('error', (error) => ended || fail(this.name, error));
    await this.pool.connect();
    this.clients.push(this.pool);
    const subscriber = await this.client();
    this.heard = ['message', 'pmessage', 'smessage'].map((way) => new Heard(`${this.name} ${way}`));
    await subscriber.subscribe(this.key('news'), (text) => this.heard[0].take(text));
    await subscriber.pSubscribe(this.key('n*'), (text) => this.heard[1].take(text));
    await subscriber.sSubscribe(this.key('shard'), (text) => this.heard[2].take(text));
  }

  call = (...args) => this.pool.sendCommand(args);
  auto = (...args) => this.automatic.sendCommand(args);
  load = (script) => this.pool.scriptLoad(script);
  evalsha = (sha, key, arg) => this.pool.evalSha(sha, { keys: [key], arguments: [arg] });
  bump = (...args) => this.pool.bump(...args);

  async batch(commands, transaction) {
    const multi = this.automatic.multi();
    for (const command of commands) multi.addCommand(command);
    return transaction ? multi.exec() : multi.execAsPipeline();
  }

  increment(key) {
    return this.pool.execute(async (client) => {
      await client.watch(key);
      const value = Number((await client.get(key)) ?? 0);
      try {
        await client.multi().set(key, `${value + 1}`).exec();
        return true;
      } catch (error) {
        if (error.constructor.name === 'WatchError') return false;
        throw error;
      }
    });
  }

  async blocking() {
    const client = await this.client();
    return async (key, seconds) => (await client.blPop(key, seconds))?.element ?? null;
  }

  async scan(match) {
    const found = [];
    for await (const keys of this.automatic.scanIterator({ MATCH: match, COUNT: 20 })) found.push(...keys);
    return found;
  }

  caching = () => this.client({ clientSideCache: { ttl: 0, maxEntries: 100, evictPolicy: 'LRU' } });
  close = () => this.clients.forEach((client) => client.destroy());
}

async function start(a) {
  await a.open();
  const queue = { produced: 0, taken: [] };
  const sums = [];
  const work = {
    counter, concurrent, pipelines, scripts, scanner,
    'optimist 0': (a, tick) => optimist(a, tick, sums),
    'optimist 1': (a, tick) => optimist(a, tick, sums),
    'consumer 0': (a, tick) => consumer(a, tick, queue),
    'consumer 1': (a, tick) => consumer(a, tick, queue),
    producer: (a, tick) => producer(a, tick, queue),
    publisher: (a, tick) => publisher(a, tick, a.heard),
    ...(a.RESP === 3 ? { cached } : {}),
  };
  return Object.entries(work).map(([title, worker]) => {
    const name = `${a.name} ${title}`;
    rounds[name] = 0;
    return worker(a, () => (rounds[name] += 1)).catch((error) => fail(name, error));
  });
}

process.on('unhandledRejection', (error) => fail('unhandled', error));
process.stdin.once('data', () => (stop = true));
const adapters = [new Io(), new Node(2), new Node(3)];
const working = (await Promise.all(adapters.map(start))).flat();
while (!stop) {
  console.log('progress', Math.min(...Object.values(rounds)));
  console.log('rounds', JSON.stringify(rounds));
  await soon(50);
}
const checks = Promise.all(working);
const finished = await Promise.race([checks, soon(failures.length ? 1000 : PATIENCE)]);
if (!finished && !failures.length) failures.push('a worker does not end');
for (const check of failures.length ? [] : finished) {
  await check?.().catch((error) => failures.push(error.stack));
}
ended = true;
for (const a of adapters) a.close();
for (const failure of failures) console.error(failure);
console.log('done', JSON.stringify(rounds));
process.exit(failures.length ? 1 : 0);
