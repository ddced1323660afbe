// --- the page of one sensor with its edges ---
const KINDS = {
  mains_hum: ['Mains hum', 'short pulses with the period of the mains (20 or 16.7 ms) or half of it', (f) => f.period_ms === null ? 'no short pulses' : 'one short pulse every ' + length(f.period_ms)],
  radio_bursts: ['Bursts when a radio sends', 'groups of short pulses with long pauses in between', (f) => count(f.bursts, 'burst') + ' with ' + count(f.in_bursts, 'pulse')],
  floating_pin: ['A pin that nothing drives', '20 short pulses or more, at random', (f) => count(f.short_pulses, 'short pulse')],
  short_pulses: ['Pulses shorter than a PIR can make', 'three or more, one by one', (f) => count(f.short_pulses, 'pulse') + ' under ' + f.too_short_ms + ' ms'],
  stuck: ['Stuck', 'active without an edge for longer than a PIR can be', (f) => f.active_for_ms === null ? 'not active now' : 'active for ' + length(f.active_for_ms)],
};
const length = (ms) => ms < 1000 ? ms + ' ms' : ms < 10000 ? (ms / 1000).toFixed(1) + ' s' : span(ms);
let looked = null, looking = 0;
const chosen = () => { try { return location.hash.startsWith('#sensor=') ? decodeURIComponent(location.hash.slice(8)) : null; } catch { return null; } };
function showChosen() {
  const name = chosen(), sensor = sensors.get(name);
  document.body.classList.toggle('one-sensor', name !== null);
  $('sensor-page').hidden = name === null;
  for (const other of sensors.values()) other.node.classList.toggle('chosen', other === sensor);
  clearTimeout(looking);
  if (name === null) { looked = null; return; }
  if (looked === null || looked.name !== name) { looked = { name, data: null }; write($('edges-text'), 'looking'); }
  write($('sensor-title'), name);
  if (sensor) lookAtEdges(); else if (sensors.size) write($('edges-text'), 'There is no such sensor.');
}
async function lookAtEdges() {
  clearTimeout(looking);
  const mine = looked;
  const { answer, wrong } = await ask('GET', 'sensors/' + encodeURIComponent(mine.name) + '/edges');
  if (mine !== looked) return;
  if (answer) { mine.data = answer; drawEdges(); } else write($('edges-text'), wrong);
  looking = setTimeout(lookAtEdges, 2000);
}
function drawEdges() {
  const { edges, figures, finding } = looked.data, simulated = sensors.get(looked.name)?.data.simulated;
  write($('edges-text'), finding ? VERDICTS[finding.verdict] + ': ' + finding.evidence + '.'
    : simulated ? 'Its motion is made up: there is no wire to look at.'
    : edges.length ? 'Nothing is the matter: ' + count(figures.pulses, 'pulse') + ' within ' + length(figures.span_ms) + ', as a PIR makes them.' : 'No edge within the last ten minutes before the last one.');
  $('edges-text').className = finding ? 'error' : '';
  write($('edges-remedy'), finding ? 'To do: ' + finding.remedy + '.' : '');
  table($('edges-kinds'), 'What was looked for', [['Looked for'], ['What it looks like'], ['Here'], ['Found']],
    Object.entries(KINDS).map(([kind, [name, looks, here]]) => [name, looks, here(figures), finding && finding.verdict === kind ? 'yes' : 'no']), '');
  const rows = [['Edges', figures.edges.toLocaleString() + ' within ' + length(figures.span_ms)], ['Pulses', figures.pulses.toLocaleString()]];
  if (figures.pulses) rows.push(['Shortest, middle and longest pulse', [figures.shortest_ms, figures.median_ms, figures.longest_ms].map(length).join(', ')]);
  table($('edges-figures'), 'Figures of the last edges', [['Figure'], ['Value']], rows, '');
  drawWave(edges);
}
// a square wave of the last edges, within the chosen time before the last of them
function drawWave(edges) {
  const plot = $('edges-wave'), last = edges.at(-1), chosen = Number($('edges-zoom').value);
  $('edges-drawing').hidden = !last;
  if (!last) return;
  const begin = chosen ? Math.max(edges[0].boot_ms, last.boot_ms - chosen) : edges[0].boot_ms, width = Math.max(1, last.boot_ms - begin);
  const shown = edges.filter((edge) => edge.boot_ms >= begin), before = edges[edges.length - shown.length - 1];
  let level = before ? before.active : !shown[0].active;
  const y = (active) => active ? 10 : 90, points = ['0,' + y(level)];
  for (const edge of shown) {
    const x = ((edge.boot_ms - begin) / width * 980).toFixed(2);
    points.push(x + ',' + y(level), x + ',' + y(edge.active));
    level = edge.active;
  }
  points.push('1000,' + y(level));
  const text = count(shown.length, 'edge') + ' within ' + length(width) + ', up is active; the last at ' + (at(last.boot_ms) === null ? 'a time that is not known' : moment(at(last.boot_ms)));
  plot.setAttribute('aria-label', 'Edges of ' + looked.name + ': ' + text);
  plot.replaceChildren(svg('polyline', { points: points.join(' ') }));
  write($('edges-range'), text);
}
$('edges-zoom').addEventListener('change', () => { if (looked && looked.data) drawEdges(); });
addEventListener('hashchange', () => { showChosen(); scrollTo(0, 0); });
