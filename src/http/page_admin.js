// --- the user of the page, and the controls for administrators ---
let who = { user: null, by: 'nothing', let_in: true, may_observe: false, admin: false, can_sign_in: false };
const say = (node, text, isBad) => { node.className = 'small' + (isBad ? ' error' : ''); write(node, text); };
// the error in words; null if there is none
async function trouble(response) {
  if (response.ok) return null;
  try { return (await response.json()).detail; } catch { return 'the gateway answered ' + response.status; }
}
async function ask(method, path, body) {
  const options = body === undefined ? { method } : { method, body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } };
  try {
    const response = await fetch('api/v1/' + path, options);
    const wrong = await trouble(response);
    return wrong === null ? { answer: response.status === 204 ? null : await response.json() } : { wrong };
  } catch { return { wrong: 'the gateway cannot be reached' }; }
}
function showWho() {
  const isAsked = !who.let_in || $('sign-in').dataset.asked === 'yes';
  document.body.classList.toggle('admin', who.admin);
  document.body.classList.toggle('locked', !who.let_in);
  $('sign-in').hidden = !isAsked;
  $('sign-in-cancel').hidden = !who.let_in;
  $('who').hidden = !who.user;
  write($('who'), who.user || '');
  $('sign-in-open').hidden = Boolean(who.user) || isAsked || !who.can_sign_in;
  $('sign-out').hidden = who.by !== 'sign_in';
  $('users-section').hidden = !who.admin;
}
// the stream has ended and begun again, perhaps because the user has changed
async function lookWho() {
  const { answer } = await ask('GET', 'session');
  if (answer && JSON.stringify(answer) !== JSON.stringify(who)) location.reload();
}
// every page begins with this, and continues with it if the stream is refused
async function start() {
  clearTimeout(retry);
  const wasLetIn = who.let_in, { answer, wrong } = await ask('GET', 'session');
  if (wrong !== undefined) { link('offline', 'offline, trying again'); retry = setTimeout(start, 3000); return; }
  who = answer;
  showWho();
  if (!who.let_in) {
    if (source) { source.close(); source = null; }
    link('', 'not signed in');
    // the rights of guests may change while the page waits for a sign-in
    retry = setTimeout(start, 30000);
    if (wasLetIn) $('sign-in-user').focus();
    return;
  }
  if (who.admin) loadUsers();
  connect();
}
$('sign-in-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const result = $('sign-in-result');
  say(result, 'signing in');
  const { wrong } = await ask('POST', 'session', { user: $('sign-in-user').value, password: $('sign-in-password').value });
  if (wrong !== undefined) { say(result, wrong, true); $('sign-in-password').select(); return; }
  const { answer } = await ask('GET', 'session');
  if (answer && answer.by === 'sign_in') location.reload();
  else say(result, 'The browser does not send the cookie of this page, as in a frame of another site: open the page by itself, or with ?basic behind its address.', true);
});
$('sign-in-open').addEventListener('click', () => { $('sign-in').dataset.asked = 'yes'; showWho(); $('sign-in-user').focus(); });
$('sign-in-cancel').addEventListener('click', () => { $('sign-in').dataset.asked = ''; showWho(); $('sign-in-open').focus(); });
$('sign-out').addEventListener('click', async () => {
  const { wrong } = await ask('DELETE', 'session');
  if (wrong === undefined) location.reload(); else say($('admin-result'), wrong, true);
});

// --- clients and branches ---
async function disconnect(client) {
  if (!confirm('Disconnect ' + client.client_id + (client.user === null ? '' : ' of user ' + client.user) + '? It may connect again.')) return;
  const user = client.user === null ? '' : '&user=' + encodeURIComponent(client.user);
  const { wrong } = await ask('DELETE', 'clients?client_id=' + encodeURIComponent(client.client_id) + user);
  say($('clients-result'), wrong === undefined ? 'disconnected ' + client.client_id : wrong, wrong !== undefined);
}
function disconnectButton(client) {
  const button = element('button', { type: 'button', className: 'plain', 'aria-label': 'Disconnect ' + client.client_id }, 'Disconnect');
  button.addEventListener('click', () => disconnect(client));
  return button;
}
async function deleteBelow(path) {
  const result = $('topics-result'), target = 'retained?filter=' + encodeURIComponent(path + '+/#');
  const { answer, wrong } = await ask('GET', target);
  if (wrong !== undefined) { say(result, wrong, true); return; }
  const kept = answer.kept ? ' ' + count(answer.kept, 'more') + ' stay, since your rules do not let you publish there.' : '';
  if (!answer.messages) { say(result, 'nothing is retained below ' + path + '.' + kept); return; }
  if (!confirm('Delete ' + count(answer.messages, 'retained message') + ' below ' + path + '? This cannot be undone.' + kept)) return;
  say(result, 'deleting');
  const done = await ask('DELETE', target);
  say(result, done.wrong === undefined ? 'deleted ' + count(done.answer.messages, 'retained message') + ' below ' + path : done.wrong, done.wrong !== undefined);
}
function branchTools(path) {
  const button = element('button', { type: 'button', className: 'plain', 'aria-label': 'Delete all retained messages below ' + path }, 'Delete retained below');
  button.addEventListener('click', () => deleteBelow(path));
  return element('div', { className: 'row admin-only' }, button);
}

// --- users ---
let changing = null;
const linesOf = (node) => node.value.split('\n').map((line) => line.trim()).filter(Boolean);
function editUser(user) {
  changing = user ? user.name : null;
  $('user-name').value = user ? user.name : '';
  $('user-name').readOnly = Boolean(user);
  $('user-password').value = '';
  $('user-password').required = !user;
  $('user-publish').value = user ? user.publish.join('\n') : '#';
  $('user-subscribe').value = user ? user.subscribe.join('\n') : '#';
  $('user-client-ids').value = user ? user.client_ids.join('\n') : '';
  write($('user-password-label'), user ? 'New password (left empty, it stays)' : 'Password');
  write($('user-save'), user ? 'Change ' + user.name : 'Add user');
  $('user-new').hidden = !user;
  $(user ? 'user-password' : 'user-name').focus();
}
function showUser(user) {
  const parts = [element('h3', { title: user.name }, user.name),
    element('span', { className: 'soft' }, (user.from === 'configuration' ? 'in the configuration file' : 'made here') + (user.admin ? ', administrator' : ''))];
  const rules = (list) => list.length ? list.join(', ') : 'nothing';
  const node = element('article', { className: 'sensor', 'aria-label': 'User ' + user.name }, element('div', { className: 'row' }, ...parts),
    element('p', { className: 'small' }, 'publishes ' + rules(user.publish) + '; receives ' + rules(user.subscribe) + (user.client_ids.length ? '; client ids ' + user.client_ids.join(', ') : '') + '.'));
  if (!user.in_force) node.append(element('p', { className: 'small warn' }, 'Without effect: the configuration file has a user of this name.'));
  if (user.from === 'configuration') return node;
  const change = element('button', { type: 'button', className: 'plain', 'aria-label': 'Change user ' + user.name, hidden: !user.in_force }, 'Change');
  change.addEventListener('click', () => editUser(user));
  const remove = element('button', { type: 'button', className: 'plain', 'aria-label': 'Remove user ' + user.name }, 'Remove');
  remove.addEventListener('click', async () => {
    if (!confirm('Remove user ' + user.name + '? Its clients are disconnected at once.')) return;
    const { wrong } = await ask('DELETE', 'users/' + encodeURIComponent(user.name));
    say($('user-result'), wrong === undefined ? 'removed ' + user.name : wrong, wrong !== undefined);
    if (changing === user.name) editUser(null);
    loadUsers();
  });
  node.append(element('div', { className: 'row' }, change, remove));
  return node;
}
async function loadUsers() {
  const { answer } = await ask('GET', 'users');
  if (answer) $('users').replaceChildren(...answer.map(showUser));
}
$('user-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const name = $('user-name').value, password = $('user-password').value;
  const body = { publish: linesOf($('user-publish')), subscribe: linesOf($('user-subscribe')), client_ids: linesOf($('user-client-ids')) };
  if (password) body.password = password;
  const isNew = changing === null;
  const { wrong } = isNew ? await ask('POST', 'users', { ...body, name }) : await ask('PUT', 'users/' + encodeURIComponent(name), body);
  say($('user-result'), wrong === undefined ? (isNew ? 'added ' : 'changed ') + name : wrong, wrong !== undefined);
  if (wrong === undefined) editUser(null);
  loadUsers();
});
$('user-new').addEventListener('click', () => editUser(null));
