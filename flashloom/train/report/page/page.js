// The page: a report of one run, or several beside one another.
'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const color = (i) => `var(--series-${i % 8 + 1})`;

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; ++i) bytes[i] = raw.charCodeAt(i);
  return bytes.buffer;
}
// Curves come as float32, steps as int32, both in base64; curves with the same steps share them.
for (const run of data.runs) {
  const steps = run.steps.map((text) => new Int32Array(bytesOf(text)));
  for (const [name, curve] of Object.entries(run.curves)) {
    run.curves[name] = {x: steps[curve.steps], y: new Float32Array(bytesOf(curve.values))};
  }
}
const compared = data.runs.length > 1;
const one = data.runs[0];
const everyStep = data.runs.flatMap((run) => Object.values(run.curves).flatMap(
    (curve) => curve.x.length ? [curve.x[0], curve.x[curve.x.length - 1]] : []));
const view = new View(Math.min(...everyStep, 1), Math.max(...everyStep, 1));

// The same metric of every run that has it. `parts`: [name, label, extra…]; with one run its parts
// differ in color, with several the runs do.
function curves(parts) {
  return data.runs.flatMap((run, r) => parts.flatMap(([name, label, extra], p) => {
    const curve = run.curves[name];
    if (!curve || (compared && p > 0 && !extra?.always)) return [];
    return [{name: compared ? `${run.name}${extra?.suffix ?? ''}` : label, x: curve.x, y: curve.y,
             color: compared ? color(r) : color(extra?.color ?? p), ...extra}];
  }));
}

function plot(title, kind, parts, options = {}) {
  const series = curves(parts).filter((part) => part.y.length > 0);
  // A curve that is 0 throughout, as lost updates with f32 weights are, says nothing.
  const silent = options.silent && series.every((part) => part.y.every((value) => value === 0));
  return series.length && !silent ? new Plot(view, {title, kind, series, ...options}).node : null;
}

function section(id, title, ...children) {
  const present = children.flat().filter(Boolean);
  if (present.length === 0) return null;
  const heading = element('h2', {id: `${id}-title`}, title);
  return element('section', {id, 'aria-labelledby': `${id}-title`}, heading, ...present);
}

const time = (text) => text ? text.replace('T', ' ').replace('Z', ' UTC') : '';

// What became of a run. A process that was killed leaves "running".
function stateOf(run) {
  const steps = run.facts?.steps;
  const done = run.outcome.steps;
  const of = steps ? `${formats.count(done)} of ${formats.count(steps)} steps` : `${formats.count(done)} steps`;
  const state = run.facts?.state;
  if (state === 'failed') return {kind: 'bad', text: `failed · ${of}`, more: run.facts.failure};
  if (state === 'stopped') return {kind: 'warn', text: `interrupted · ${of}`};
  if (state === 'finished' || (steps && done >= steps)) return {kind: 'good', text: `finished · ${of}`};
  if (state === 'running') return {kind: 'warn', text: `not finished · ${of}`, more: 'still running, or ended from outside'};
  return {kind: 'plain', text: of};
}

function tile(label, value, note = null, kind = '') {
  return element('div', {class: `tile ${kind}`}, element('dt', {}, label),
      element('dd', {}, value), note === null ? null : element('dd', {class: 'note'}, note));
}

function header() {
  const names = compared
      ? element('h1', {}, `${data.runs.length} runs compared`)
      : element('h1', {}, one.name);
  const model = one.facts?.model;
  const lines = [];
  if (!compared) {
    const method = one.run?.settings?.method;
    const what = [method && {lora: 'LoRA', full: 'all weights'}[method] || method,
        model && model.path.split('/').pop(),
        model && `${scaled(model.trained_parameters, 3, ['', ' k', ' M', ' G'])} of ${scaled(model.parameters, 3, ['', ' k', ' M', ' G'])} parameters trained`,
    ].filter(Boolean).join(' · ');
    if (what) lines.push(element('p', {class: 'what'}, what));
    const state = stateOf(one);
    lines.push(element('p', {class: 'state-line'}, element('span', {class: `badge ${state.kind}`}, state.text),
        one.facts ? element('span', {class: 'note'}, `started ${time(one.facts.started)} · ${one.facts.program}`) : null));
    if (state.more) lines.push(element('p', {class: `message ${state.kind}`}, state.more));
  } else {
    lines.push(element('ul', {class: 'runs'}, ...data.runs.map((run, r) => {
      const state = stateOf(run);
      return element('li', {}, element('i', {class: 'swatch', style: `background:${color(r)}`}), element('b', {}, run.name),
          element('span', {class: `badge ${state.kind}`}, state.text), element('span', {class: 'note'},
              [run.facts?.model?.path?.split('/').pop(), time(run.facts?.started)].filter(Boolean).join(' · ')));
    })));
  }
  return element('header', {}, element('p', {class: 'brand'}, 'Flashloom'), names, ...lines);
}

function headline() {
  const o = one.outcome;
  const tiles = [];
  if (o.eval_loss_after !== undefined) {
    tiles.push(tile('held-out loss', formats.loss(o.eval_loss_after),
        o.eval_loss_before !== undefined ? `from ${formats.loss(o.eval_loss_before)} before training` : null, 'main'));
    tiles.push(tile('held-out perplexity', significant(Math.exp(o.eval_loss_after), 3),
        o.eval_loss_before !== undefined ? `from ${significant(Math.exp(o.eval_loss_before), 3)}` : null));
  }
  if (o.loss !== undefined) {
    tiles.push(tile('training loss', formats.loss(o.loss), `last tenth of the steps; first ${formats.loss(o.first_loss)}`,
        o.eval_loss_after === undefined ? 'main' : ''));
  }
  if (o.tokens_per_second !== undefined) {
    tiles.push(tile('tokens a second', formats.speed(o.tokens_per_second),
        `${formats.speed(o.loss_tokens_per_second)} bear loss${o.mfu !== undefined ? ` · MFU ${formats.share(o.mfu)}` : ''}`));
  }
  if (o.seconds !== undefined) {
    tiles.push(tile('time in steps', duration(o.seconds), `${scaled(o.tokens, 3, ['', ' k', ' M', ' G'])} tokens`));
  }
  if (o.peak_bytes !== undefined) {
    tiles.push(tile('memory peak', formats.bytes(o.peak_bytes),
        o.planned_bytes ? `of ${formats.bytes(o.planned_bytes)} planned` : null));
  }
  const found = one.guards.length;
  tiles.push(tile('guards’ findings', found === 0 ? 'none' : String(found),
      one.facts?.choices?.guards === 'off' ? 'the guards were off' : null, found ? 'warn' : ''));
  return element('dl', {class: 'tiles'}, ...tiles);
}

// The whole run in one strip, with the visible part as a window that can be moved and resized.
function navigator_() {
  const pick = (run) => run.curves.loss || run.curves.eval_loss;
  if (!data.runs.some(pick)) return null;
  const svg = shape('svg', {class: 'strip', tabindex: 0, role: 'slider', 'aria-label': 'visible steps', preserveAspectRatio: 'none'});
  const height = 34;
  const range = element('output', {class: 'range'});
  let width = 0;
  const toPixel = (step) => (step - view.first) / (view.last - view.first) * width;
  const toStep = (pixel) => view.first + pixel / width * (view.last - view.first);
  const frame = shape('rect', {class: 'window', y: 0.5, height: height - 1, rx: 4});
  const place = () => {
    frame.setAttribute('x', toPixel(view.low));
    frame.setAttribute('width', Math.max(6, toPixel(view.high) - toPixel(view.low)));
    const text = `steps ${grouped(Math.ceil(view.low))} to ${grouped(Math.floor(view.high))}`;
    range.textContent = text;
    svg.setAttribute('aria-valuetext', text);
    svg.setAttribute('aria-valuemin', view.first);
    svg.setAttribute('aria-valuemax', view.last);
    svg.setAttribute('aria-valuenow', Math.round((view.low + view.high) / 2));
  };
  const draw = () => {
    width = svg.clientWidth || 600;
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    svg.replaceChildren();
    let low = Infinity, high = -Infinity;
    const lines = data.runs.map(pick).map((curve) => {
      if (!curve) return null;
      const y = smoothed(curve.y, curve.y.length > 60 ? 0.9 : 0);
      for (const value of y) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
      return {x: curve.x, y};
    });
    lines.forEach((line, r) => {
      if (!line) return;
      const points = visiblePoints(line.x, line.y, 0, line.x.length, view.first, view.last, width);
      const text = points.filter((i) => Number.isFinite(line.y[i])).map((i, n) => `${n ? 'L' : 'M'}${toPixel(line.x[i]).toFixed(1)} ${
          (height - 5 - (line.y[i] - low) / (high - low || 1) * (height - 10)).toFixed(1)}`).join('');
      svg.append(shape('path', {class: 'curve', d: text, stroke: compared ? color(r) : 'var(--faint)'}));
    });
    svg.append(frame);
    place();
  };
  let held = null;
  const stepAt = (event) => toStep(event.clientX - svg.getBoundingClientRect().left);
  svg.addEventListener('pointerdown', (event) => {
    const step = stepAt(event);
    const near = 10 / width * (view.last - view.first);
    held = view.zoomed && Math.abs(step - view.low) < near ? {edge: 'low'}
         : view.zoomed && Math.abs(step - view.high) < near ? {edge: 'high'}
         : view.zoomed && step > view.low && step < view.high ? {step} : {from: step};
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener('pointermove', (event) => {
    const step = stepAt(event);
    if (held === null) return;
    if (held.edge === 'low') view.show(Math.min(step, view.high - 1), view.high);
    else if (held.edge === 'high') view.show(view.low, Math.max(step, view.low + 1));
    else if (held.from !== undefined) {
      if (Math.abs(toPixel(step) - toPixel(held.from)) > 6) view.show(Math.min(held.from, step), Math.max(held.from, step));
    } else {
      view.pan(step - held.step);
      held.step = step;
    }
  });
  svg.addEventListener('pointerup', () => { held = null; });
  svg.addEventListener('dblclick', () => view.all());
  svg.addEventListener('keydown', (event) => {
    if (moveByKey(view, event)) event.preventDefault();
  });
  view.listeners.push((what) => { if (what === 'range') place(); });
  new ResizeObserver(() => { if (svg.clientWidth !== width) draw(); }).observe(svg);
  const button = (text, title, action) => element('button', {type: 'button', title, 'aria-label': title, onclick: action}, text);
  const smoothing = element('input', {type: 'range', min: 0, max: 100, value: 0, id: 'smoothing', oninput: (event) => {
    // Of 0 to 100 to a weight whose memory, 1 / (1 - w), grows evenly in its logarithm up to 1,000.
    view.smooth(1 - 10 ** (-3 * Number(event.target.value) / 100));
  }});
  const longest = Math.max(...data.runs.map((run) => run.curves.loss?.x.length ?? 0));
  // Noise hides the course of a run: a twentieth of it is averaged from the start, 126 steps at most.
  smoothing.value = longest > 40 ? Math.min(70, Math.round(100 / 3 * Math.log10(longest / 20))) : 0;
  view.smoothing = 1 - 10 ** (-3 * Number(smoothing.value) / 100);
  const bar = element('div', {class: 'bar'}, svg, element('div', {class: 'controls'}, range,
      button('−', 'zoom out', () => view.zoom(1.6)), button('+', 'zoom in', () => view.zoom(1 / 1.6)),
      button('all', 'show all steps', () => view.all()),
      element('span', {class: 'smoothing'}, element('label', {for: 'smoothing'}, 'smoothing'), smoothing)));
  bar.draw = draw;
  return bar;
}

function plots() {
  const clip = Number(one.run?.settings?.clip);
  const smooth = {smooth: true};
  const known = ['loss', 'eval_loss', 'learning_rate', 'gradient_norm', 'largest_gradient_norm', 'smallest_gradient_norm',
    'all_tokens_per_second', 'real_tokens_per_second', 'loss_tokens_per_second', 'mfu', 'packing', 'update_ratio',
    'lost_updates', 'memory_bytes'];
  const loss = compared
      ? [plot('Training loss', 'loss', [['loss', 'training', smooth]], {unit: 'nats a token', log: true, tall: true}),
         plot('Held-out loss', 'loss', [['eval_loss', 'held-out', {dots: true}]], {unit: 'nats a token', log: true, tall: true})]
      : [plot('Loss', 'loss', [['loss', 'training', smooth], ['eval_loss', 'held-out', {dots: true}]],
            {unit: 'nats a token', log: true, tall: true})];
  const rest = [
    plot('Learning rate', 'rate', [['learning_rate', 'learning rate']], {zero: true}),
    plot('Gradient norm', 'norm', [['gradient_norm', 'all', smooth], ['largest_gradient_norm', 'largest tensor', {smooth: true, hidden: true}],
      ['smallest_gradient_norm', 'smallest tensor', {smooth: true, hidden: true}]],
        {log: true, lines: clip > 0 ? [{value: clip, name: `clipped at ${clip}`}] : []}),
    plot('Tokens a second', 'speed', [['all_tokens_per_second', one.curves.real_tokens_per_second ? 'all' : 'all (no padding)', smooth], ['real_tokens_per_second', 'real', smooth],
      ['loss_tokens_per_second', 'bear loss', smooth]], {zero: true}),
    plot('Model FLOPs utilisation', 'share', [['mfu', 'MFU', smooth]],
        {zero: true, note: 'FLOPs of the matrix products, without recomputation, over what the machine could multiply and add.'}),
    plot('Size of an update', 'norm', [['update_ratio', '|Δw| / |w|', smooth]],
        {log: true, note: 'Sampled by the guards; near 0.001 is usual for full training.'}),
    plot('Updates lost to rounding', 'share', [['lost_updates', 'lost', smooth]], {zero: true, silent: true}),
    plot('Packing', 'share', [['packing', 'filled', smooth]], {note: 'Share of the room of a step’s bins that tokens fill.'}),
    compared ? memoryOverTime() : null,
    ...[...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))].filter((name) => !known.includes(name))
        .map((name) => plot(name.replaceAll('_', ' '), 'norm', [[name, name, smooth]])),
  ];
  const grid = element('div', {class: compared ? 'grid wide' : 'grid'}, ...rest.filter(Boolean));
  return [section('loss', 'Loss', ...loss), grid.children.length ? section('course', 'Course of the run', grid) : null];
}

const memoryOverTime = () => plot('Memory over time', 'bytes', [['memory_bytes', 'held']],
    {zero: true, lines: !compared && one.outcome.planned_bytes ? [{value: one.outcome.planned_bytes, name: 'planned'}] : []});

// Bars with a value each under the pointer or the arrow keys. bars: [{label, values, text}].
function barChart(title, unit, names, bars, format) {
  const svg = shape('svg', {class: 'plot', tabindex: 0, role: 'img', 'aria-label': `${title}: ${bars.map((bar) => bar.text).join('; ')}`});
  const readout = element('p', {class: 'readout', 'aria-live': 'polite'});
  let chosen = null;
  const draw = () => {
    const width = svg.clientWidth || 600, height = svg.clientHeight || 220, bottom = height - 22, top = 8;
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const most = Math.max(...bars.flatMap((bar) => bar.values), 1e-9);
    const grid = ticks(0, most, Math.floor((bottom - top) / 44));
    const texts = grid.list.map(format);
    const left = 12 + 6.6 * Math.max(2, ...texts.map((text) => text.length));
    const inner = width - left - 12;
    const toY = (value) => bottom - value / most * (bottom - top);
    grid.list.forEach((value, i) => svg.append(
        shape('line', {class: 'grid', x1: left, x2: left + inner, y1: toY(value), y2: toY(value)}),
        shape('text', {class: 'tick', x: left - 6, y: toY(value) + 4, 'text-anchor': 'end'}, texts[i])));
    const slot = inner / bars.length;
    const stride = Math.ceil(46 / slot);
    bars.forEach((bar, b) => {
      const group = shape('g', {class: chosen === b ? 'slot chosen' : 'slot'});
      group.append(shape('rect', {class: 'hit', x: left + b * slot, y: top, width: slot, height: bottom - top}));
      const thick = Math.max(1, (slot - Math.min(4, slot / 4)) / bar.values.length);
      bar.values.forEach((value, v) => group.append(shape('rect', {class: 'bar-rect', fill: names[v].color, rx: Math.min(2, thick / 4),
        x: left + b * slot + Math.min(2, slot / 8) + v * thick, width: Math.max(1, thick - 1), y: toY(value), height: Math.max(0, bottom - toY(value))})));
      group.addEventListener('pointerenter', () => choose(b));
      svg.append(group);
      if (b % stride === 0) svg.append(shape('text', {class: 'tick', x: left + b * slot, y: height - 5, 'text-anchor': 'start'}, bar.label));
    });
  };
  const choose = (b) => {
    chosen = b;
    [...svg.querySelectorAll('.slot')].forEach((group, i) => group.setAttribute('class', i === b ? 'slot chosen' : 'slot'));
    readout.textContent = b === null ? unit : bars[b].text;
  };
  svg.addEventListener('pointerleave', () => choose(null));
  svg.addEventListener('keydown', (event) => {
    const side = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!side) return;
    choose(Math.min(Math.max((chosen ?? (side > 0 ? -1 : bars.length)) + side, 0), bars.length - 1));
    event.preventDefault();
  });
  choose(null);
  new ResizeObserver(draw).observe(svg);
  const legend = element('ul', {class: 'legend'}, ...names.map((name) => element('li', {}, element('span', {class: 'key'},
      element('i', {style: `background:${name.color}`}), element('span', {}, name.name)))));
  const node = element('figure', {class: 'card plot-card'}, element('figcaption', {}, element('h3', {}, title)),
      names.length > 1 ? legend : null, svg, readout);
  node.draw = draw;
  return node;
}

function lengths() {
  const sides = data.runs.flatMap((run, r) => [['train', 'training'], ['held_out', 'held-out']].flatMap(([name, label], s) => {
    const side = run.facts?.data?.[name];
    return side && side.lengths.length && !(compared && s)
        ? [{name: compared ? run.name : label, color: color(compared ? r : s), side, width: run.facts.data.length_bin}] : [];
  }));
  // Bars of one width: what has narrower ones is added up.
  const width = Math.max(...sides.map((side) => side.width));
  if (sides.length === 0) return null;
  for (const side of sides) {
    side.bars = [];
    side.side.lengths.forEach((count, i) => {
      const bar = Math.floor(i * side.width / width);
      side.bars[bar] = (side.bars[bar] || 0) + count;
    });
  }
  const bars = Array.from({length: Math.max(...sides.map((side) => side.bars.length))}, (_, i) => {
    const counts = sides.map((side) => side.bars[i] || 0);
    return {label: grouped(i * width), values: counts.map((count, s) => count / sides[s].side.documents),
            text: `${grouped(i * width)} to ${grouped((i + 1) * width - 1)} tokens: ${
              counts.map((count, s) => `${grouped(count)} ${sides[s].name} (${formats.share(count / sides[s].side.documents)})`).join(', ')}`};
  });
  return barChart('Lengths of the documents', 'share of the documents by their number of tokens', sides, bars, (value) => tickText(value, 0.01, 'share'));
}

function rows(pairs) {
  const present = pairs.filter((pair) => pair && pair[1] !== undefined && pair[1] !== null && pair[1] !== '');
  return present.length === 0 ? null : element('table', {class: 'facts'}, element('tbody', {},
      ...present.map(([name, value]) => element('tr', {}, element('th', {scope: 'row'}, name), element('td', {}, String(value))))));
}

function dataCard(title, side) {
  if (!side) return null;
  return element('div', {class: 'card'}, element('h3', {}, title), rows([
    ['files', side.files.join(', ')], ['rows', side.rows], ['documents', formats.count(side.documents)],
    ['tokens', formats.count(side.tokens)],
    ['of them bear loss', `${formats.count(side.loss_tokens)} (${formats.share(side.loss_tokens / side.tokens)})`],
    ['tokens a document', `${formats.count(side.shortest)} to ${formats.count(side.longest)}, median ${formats.count(side.median)}`],
  ]));
}

function packing() {
  const train = one.facts?.data?.train;
  const filled = one.outcome.packing;
  if (filled === undefined && !train) return null;
  const share = (value, label, name) => element('div', {class: 'meter-row'}, element('span', {}, label),
      element('div', {class: `meter ${name}`}, element('i', {style: `width:${(100 * value).toFixed(2)}%`})), element('b', {}, formats.share(value)));
  const padded = train && train.longest ? train.tokens / train.documents / train.longest : null;
  return element('div', {class: 'card'}, element('h3', {}, 'Packing efficiency'),
      filled === undefined ? null : share(filled, 'packed, as trained', 'packed'),
      padded === null ? null : share(padded, 'if every document were padded to the longest', 'padded'),
      element('p', {class: 'note'}, filled !== undefined && padded
          ? `The same room holds ${significant(filled / padded, 3)} times as many tokens as with padding.`
          : 'Share of the bins’ room that tokens fill.'));
}

const memoryColors = {weights: 1, adapters: 2, gradients: 3, optimizer: 4, activations: 5, workspace: 6, data: 7, shared: 6, process: 8};

function memory() {
  const plan = one.facts?.memory;
  if (!plan || !plan.rows.length) return null;
  const peak = one.outcome.peak_bytes;
  const most = Math.max(plan.planned_bytes, peak || 0) || 1;
  const share = (bytes) => `${(100 * bytes / most).toFixed(3)}%`;
  const tint = (row) => `var(--series-${memoryColors[row.kind] || 8})`;
  const stack = element('div', {class: 'stack', role: 'img', 'aria-label': `planned ${formats.bytes(plan.planned_bytes)}, measured peak ${formats.bytes(peak)}`},
      ...plan.rows.map((row) => element('i', {style: `width:${share(row.bytes)};background:${tint(row)}`, title: `${row.kind}: ${formats.bytes(row.bytes)}`})));
  const measured = peak ? element('div', {class: 'stack measured'}, element('i', {style: `width:${share(peak)}`})) : null;
  const table = element('table', {class: 'facts memory'}, element('thead', {}, element('tr', {}, ...['purpose', 'bytes', 'of the plan', 'largest'].map(
      (name) => element('th', {scope: 'col'}, name)))), element('tbody', {}, ...plan.rows.map((row) => element('tr', {},
      element('th', {scope: 'row'}, element('i', {class: 'swatch', style: `background:${tint(row)}`}), row.kind),
      element('td', {class: 'number'}, formats.bytes(row.bytes)), element('td', {class: 'number'}, formats.share(row.bytes / plan.planned_bytes)),
      element('td', {class: 'mono'}, row.largest || `shared by ${row.buffers} stages`)))));
  return element('div', {class: 'card'}, element('h3', {}, 'Memory plan against the measured peak'),
      element('div', {class: 'stacks'}, element('span', {}, 'planned'), stack, element('b', {}, formats.bytes(plan.planned_bytes)),
          ...(measured ? [element('span', {}, 'measured'), measured, element('b', {}, formats.bytes(peak))] : [])),
      element('p', {class: 'note'}, `${peak ? `The peak is ${formats.share(peak / plan.planned_bytes)} of the plan. ` : ''}${
        formats.bytes(plan.budget_bytes)} were free when the run started. Mapped weight files are not counted.`), table);
}

function guards() {
  if (compared) return null;
  const off = one.facts?.choices?.guards === 'off';
  if (one.guards.length === 0) {
    return section('guards', 'Guards', element('p', {class: `message ${off ? 'plain' : 'good'}`},
        off ? 'The guards were off.' : 'The guards found no sign that the run does not train as it should.'));
  }
  return section('guards', 'Guards', element('ul', {class: 'findings'}, ...one.guards.map((finding) => element('li', {class: 'message warn'},
      element('p', {}, element('b', {}, finding.guard), element('span', {class: 'note'}, finding.step === 0 ? 'before training' : `step ${grouped(finding.step)}`)),
      element('p', {}, finding.finding)))));
}

// A prompt as the model sees it: its special tokens shown, but faint.
function promptText(text) {
  return element('pre', {class: 'prompt'}, ...text.split(/(<\|[^|<>]{1,40}\|>|<\/?s>)/).map(
      (part, i) => i % 2 ? element('span', {class: 'special'}, part) : document.createTextNode(part)));
}

function samples() {
  const first = data.runs.find((run) => run.facts?.samples?.length);
  if (!first) return null;
  const answer = (label, text, kind) => text === undefined ? null :
      element('div', {class: `answer ${kind}`}, element('h4', {}, label), text === '' ? element('p', {class: 'note'}, 'nothing') : element('p', {class: 'text'}, text));
  return section('samples', 'Sample answers', ...first.facts.samples.map((sample, i) => {
    const others = compared ? data.runs.map((run) => {
      const same = run.facts?.samples?.find((other) => other.prompt === sample.prompt);
      return same ? answer(`after, ${run.name}`, same.after, 'after') : null;
    }) : [answer('after training', sample.after, 'after')];
    return element('article', {class: 'card sample'}, element('details', i === 0 ? {open: ''} : {},
        element('summary', {}, element('h3', {}, `Question ${i + 1}`)), promptText(sample.prompt)),
        element('div', {class: 'answers'}, answer('the data’s own answer', sample.expected, 'expected'),
            answer('before training', sample.before, 'before'), ...others));
  }), element('p', {class: 'note'}, 'The likeliest token each time, so the same weights give the same answer. Long answers are cut.'));
}

const shown = (value) => value === null || value === undefined ? '–' : typeof value === 'string' ? value : JSON.stringify(value);

function settings() {
  if (compared) return null;
  const all = {...(one.run?.settings || {})};
  const choices = {...(one.facts?.choices || {})};
  const take = (names) => names.flatMap((name) => {
    if (!(name in all)) return [];
    const value = all[name];
    delete all[name];
    return [[name, /^[0-9a-f]{32}$/.test(value) ? `${value.slice(0, 12)}…` : shown(value)]];
  });
  const linears = Object.keys(all).filter((name) => name.endsWith('_proj'));
  const method = take(['method', 'lora_rank', 'lora_alpha', 'lora_plus', 'rslora', 'freeze', 'weight_dtype', 'neftune']);
  if (linears.length) {
    method.push(['adapters on', linears.filter((name) => all[name] === true).join(', ')]);
    for (const name of linears) delete all[name];
  }
  const optimizer = take(['optimizer', 'learning_rate', 'schedule', 'warmup', 'minimum_rate', 'wsd_decay', 'weight_decay', 'clip', 'bf16_updates', 'batch_tokens']);
  const source = take(['seed', 'seq_len', 'long', 'held_out', 'data_weights', 'model', 'data', 'eval_data']);
  const rest = take(Object.keys(all));
  const card = (title, pairs) => {
    const table = rows(pairs);
    return table ? element('div', {class: 'card'}, element('h3', {}, title), table) : null;
  };
  const model = one.facts?.model;
  const cards = [card('Method', method), card('Optimizer', optimizer), card('Data and seed', source.concat(rest)),
    card('Model', model ? [['path', model.path], ['architecture', model.architecture], ['parameters', formats.count(model.parameters)],
      ['trained', formats.count(model.trained_parameters)], ['layers', model.layers], ['hidden size', formats.count(model.hidden_size)],
      ['vocabulary', formats.count(model.vocabulary_size)]] : []),
    card('Machine and choices', [['processor', one.facts?.machine?.processor], ['threads', one.facts?.machine?.threads],
      ...Object.entries(choices).map(([name, value]) => [name, shown(value)]), ['folder', one.path]])];
  return section('settings', 'Settings', element('div', {class: 'columns'}, ...cards.filter(Boolean)));
}

// Tables of what differs, a column a run.
function differences() {
  if (!compared) return null;
  const head = (title) => element('thead', {}, element('tr', {}, element('th', {scope: 'col'}, title),
      ...data.runs.map((run, r) => element('th', {scope: 'col'}, element('i', {class: 'swatch', style: `background:${color(r)}`}), run.name))));
  const table = (title, list, same) => element('div', {class: 'card scroll'}, list.length === 0 ? element('h3', {}, title) : null,
      list.length === 0 ? element('p', {class: 'note'}, same)
          : element('table', {class: 'facts compare'}, head(title), element('tbody', {}, ...list.map((row) => element('tr', {},
              element('th', {scope: 'row'}, row.name), ...row.values.map((value, i) => element('td', {class: row.best === i ? 'best' : ''}, shown(value))))))));
  return section('differences', 'What differed', table('settings', data.comparison.settings, 'Every setting is the same.'),
      table('data', data.comparison.data, 'The data are the same.'), table('outcome', data.comparison.outcome, 'No outcome was recorded.'));
}

function missing() {
  const parts = [];
  if (!one.facts) parts.push('memory plan, lengths, samples and machine (facts.json)');
  if (!one.run) parts.push('settings (run.json)');
  if (!one.curves.loss) parts.push('steps (metrics.jsonl)');
  if (one.curves.loss && !one.curves.eval_loss) parts.push('held-out loss');
  return parts.length && !compared ? element('p', {class: 'note'}, `Not recorded by this run: ${parts.join('; ')}.`) : null;
}

const strip = navigator_();
const histogram = lengths();
const main = document.getElementById('page');
const [lossSection, courseSection] = plots();
// A finding comes first; that there is none can wait.
const findings = guards(), alarmed = one.guards.length > 0;
main.append(...[header(), compared ? null : headline(), alarmed ? findings : null, differences(), strip, lossSection, samples(), courseSection,
  alarmed ? null : findings,
  section('data-section', 'Data', element('div', {class: 'columns'}, ...[histogram, compared ? null : packing(),
    compared ? null : dataCard('Training data', one.facts?.data?.train), compared ? null : dataCard('Held-out data', one.facts?.data?.held_out)].filter(Boolean))),
  compared ? null : section('memory', 'Memory', memory(), memoryOverTime()), settings(), missing(),
  element('footer', {class: 'note'}, `Written by ${data.program}. Drag across a plot to zoom, double-click to see all; Shift-drag pans, Ctrl-wheel zooms; the keys are ← → + − 0.`),
].filter(Boolean));
document.querySelectorAll('section').forEach((node) => {
  if (node.querySelector('.columns') && !node.querySelector('.columns').children.length) node.remove();
});
// Everything has its place now: draw once at the right size.
view.changed('range');
if (strip) strip.draw();
if (histogram) histogram.draw();
document.documentElement.dataset.readyMilliseconds = performance.now().toFixed(1);
