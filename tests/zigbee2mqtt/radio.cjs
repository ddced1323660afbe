// Stands for the radio of Zigbee2MQTT, which runs as it is: a coordinator that knows its devices and hears nothing of them.
'use strict';
const path = require('node:path');
const herdsman = path.dirname(require.resolve('zigbee-herdsman/package.json', { paths: [process.env.ZIGBEE2MQTT_MODULES] }));
const { Adapter } = require(path.join(herdsman, 'dist/adapter/adapter.js'));

const ADDRESS = '0x00124b0018ed3ddf';

class Radio extends Adapter {
  async start() { return 'resumed'; }
  async stop() {}
  async getCoordinatorIEEE() { return ADDRESS; }
  async getCoordinatorVersion() { return { type: 'zStack3x0', meta: { revision: 20221226 } }; }
  async getNetworkParameters() {
    return { panID: this.networkOptions.panID, extendedPanID: ADDRESS, channel: this.networkOptions.channelList[0], nwkUpdateID: 0 };
  }
  async reset() {}
  async supportsBackup() { return false; }
  async backup() { throw new Error('there is no backup'); }
  async addInstallCode() {}
  async permitJoin() {}
  async sendZdo() { throw new Error('nobody answers'); }
  async sendZclFrameToEndpoint() { throw new Error('nobody answers'); }
  async sendZclFrameToGroup() {}
  async sendZclFrameToAll() {}
}

Adapter.create = async (...options) => new Radio(...options);
