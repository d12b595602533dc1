// Server-sent events out of a fetch() body.

// Yields the data of each event.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const pieces = (rest + value).replaceAll('\r\n', '\n').split('\n\n');
    rest = pieces.pop();
    for (const piece of pieces) {
      const lines = piece.split('\n').filter((line) => line.startsWith('data:'));
      if (lines.length > 0) yield lines.map((line) => line.slice(5).trimStart()).join('\n');
    }
  }
}
