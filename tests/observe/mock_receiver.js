// Starts @elastic/mockotlpserver at free ports; prints their addresses, then each request as a line of JSON.
const {MockOtlpServer} = require('@elastic/mockotlpserver');
const {jsonStringifyTrace} = require('@elastic/mockotlpserver/lib/normalize');

const server = new MockOtlpServer({
    logLevel: 'fatal',
    services: ['http', 'grpc'],
    httpHostname: '127.0.0.1',
    grpcHostname: '127.0.0.1',
    httpPort: 0,
    grpcPort: 0,
    onTrace: (trace) => console.log(jsonStringifyTrace(trace, {normAttributes: true})),
});
server.start().then(() => console.log(JSON.stringify({http: server.httpUrl, grpc: server.grpcUrl})));
